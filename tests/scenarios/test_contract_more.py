"""Checkpoints, hyperparameters of one's own, parts kept in fp32, an earlier plan: two real runs.

The first serves a training checkpoint; the second trains a model whose shape is searched,
against the first one's plan.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.scenarios.conftest import ROOT, Ran, command, read
from tests.scenarios.test_contract_given import DIGITS, trained_on_digits

CHECKPOINT = (
    "import argparse\nparser = argparse.ArgumentParser()\n"
    'parser.add_argument("--hidden", type=int, default=7)\n'
    "HIDDEN = parser.parse_args().hidden\n"
) + DIGITS.replace("hidden=32", "hidden=HIDDEN")

SPACE = (
    DIGITS
    + """

def space(trial):
    return {"hidden": trial.suggest_int("hidden", 24, 40)}
"""
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, measured: Path) -> Ran:
    """A run on ``{"state_dict": ..., "optimizer": ...}`` with ``module.`` prefixes."""
    root = tmp_path_factory.mktemp("checkpoint")
    model = trained_on_digits(hidden=32)
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    saved = {"state_dict": state, "optimizer": torch.optim.Adam(model.parameters()).state_dict()}
    torch.save(saved, root / "last.ckpt")
    (root / "model.py").write_text(CHECKPOINT)
    done = command(
        "run", "model.py", "--weights", "last.ckpt", "--out", "report", "--time", "120s",
        "--trials", "3", "--only", "runtime=onnxruntime", "--without", "prune,int8_dynamic",
        "--keep-fp32", "2", "--threads", "1", "--max-drop", "0.05", "--latency", "5ms",
        "--profile", measured, "--", "--hidden", "32", cwd=root,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr, root / "report", read(root / "report"))


def test_a_training_checkpoint_is_served_and_said(served: Ran) -> None:
    assert served.code == 0, served.out + served.err
    assert served.report is not None
    said = served.out + served.err
    assert "last.ckpt: the state dict under 'state_dict' was taken" in said
    assert "last.ckpt: stripped 'module.' from the names of the weights" in said
    plan = json.loads((served.folder / "plan.json").read_text())
    assert plan["args"] == ["--hidden", "32"]
    assert len(plan["weights_sha256"]) == 64
    assert plan["recipe"] is None
    assert served.report["train_trials"] == []


def test_what_is_kept_in_fp32_is_not_quantized(served: Ran) -> None:
    assert served.report is not None
    tried = [t for t in served.report["deploy_trials"] if t["deployment"]["compress"]]
    assert tried
    for trial in tried:
        assert trial["deployment"]["compress"][0]["params"]["keep_fp32"] == "2"
        assert trial["state"] == "complete", trial


def test_a_name_that_is_no_module_is_refused(served: Ran) -> None:
    root = served.folder.parent
    done = command(
        "run", "model.py", "--weights", "last.ckpt", "--keep-fp32", "head.*", "--time", "30s",
        "--out", "refused", "--", "--hidden", "32", cwd=root,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--keep-fp32 'head.*': no module is called so; there are: 0, 1, 2" in done.stderr


def test_other_arguments_are_another_model(served: Ran) -> None:
    """The checkpoint does not fit; every name is listed."""
    root = served.folder.parent
    done = command("run", "model.py", "--weights", "last.ckpt", "--out", "other", cwd=root)
    assert done.returncode == 2
    assert "0.weight" in done.stderr
    assert "[32, 64]" in done.stderr
    assert "[7, 64]" in done.stderr


def test_verify_needs_no_torch_for_an_onnx_artifact(served: Ran, tmp_path: Path) -> None:
    """Neither the command nor the process that measures imports torch; quality is said to be
    not measured, with the recorded value and its date.
    """
    assert served.report is not None
    (tmp_path / "torch.py").write_text("raise ImportError('there is no torch here')\n")
    done = subprocess.run(
        [sys.executable, "-m", "autotune", "verify", str(served.folder), "--latency", "1us"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert done.returncode == 3, done.stdout + done.stderr
    assert "NOT_MET" in done.stdout
    assert "NOT_MEASURED" in done.stdout
    day = served.report["created_utc"][:10]
    assert f"{served.report['chosen']['quality']:.4g} on {day}" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_the_models_own_shape_is_searched_against_an_earlier_plan(
    served: Ran, tmp_path: Path, measured: Path
) -> None:
    (tmp_path / "model.py").write_text(SPACE)
    done = command(
        "run", "model.py", "--out", "report", "--time", "120s", "--trials", "1",
        "--train-trials", "4", "--steps", "100", "--threads", "1", "--without", "prune,compiled",
        "--max-drop", "0.05", "--fix", "hidden=33", "--baseline", served.folder,
        "--profile", measured, cwd=tmp_path,
    )  # fmt: skip
    report = read(tmp_path / "report")
    assert report is not None, done.stdout + done.stderr
    assert report["train_baseline"]["recipe"]["params"] == {"hidden": 32}, "make_model's own"
    widths = {t["recipe"]["params"]["hidden"] for t in report["train_trials"]}
    assert widths == {32, 33}
    assert report["chosen"]["plan"]["epochs"] == 4, "100 steps of 32 rows are 4 epochs of 900"
    hidden = report["chosen"]["plan"]["recipe"]["params"]["hidden"]
    assert f"hidden={hidden}" in done.stdout
    assert report["earlier"]["plan"] == json.loads((served.folder / "plan.json").read_text())
    assert report["earlier"]["latency_s"]["samples"] > 1000
    assert f"Against the plan of {served.folder}" in " ".join(done.stdout.split())
    other = DIGITS.replace("64", "65").replace("x[start:stop] / 16", "add(x[start:stop])")
    (tmp_path / "wide.py").write_text(
        "import numpy as np\ndef add(x):\n    return np.pad(x, ((0, 0), (0, 1)))\n" + other
    )
    refused = command("run", "wide.py", "--baseline", served.folder, "--out", "w", cwd=tmp_path)
    assert refused.returncode == 2
    assert "its input_shapes is" in refused.stderr
