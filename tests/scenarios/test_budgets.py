"""Budgets that cannot be met, or cannot be measured, or steer the choice by a counter."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autotune.records import codec
from autotune.records.plan import Deployment, Plan, Recipe
from tests.scenarios.conftest import EXAMPLES, QUICK, ROOT, Ran, command, read

MLP = EXAMPLES / "digits_mlp.py"
PLAIN = ("--without", "compiled,prune,ddp")
Run = Callable[..., Ran]


@pytest.mark.slow
def test_an_impossible_latency(run: Run) -> None:
    ran = run(MLP, *QUICK, *PLAIN, "--latency", "1us")
    assert ran.code == 3
    assert ran.verdicts["latency"] == "NOT_MET"
    assert "least-violating plan" in ran.out
    assert "x the limit" in ran.out


def test_energy_that_cannot_be_measured(run: Run, tmp_path: Path) -> None:
    empty = tmp_path / "no-powercap"
    empty.mkdir()
    ran = run(MLP, *QUICK, "--energy", "1mJ", "--powercap-root", empty, *PLAIN)
    assert ran.code == 4
    assert ran.verdicts["energy"] == "NOT_MEASURED"
    assert "exit 4" in ran.err
    assert ran.report is not None
    assert ran.report["chosen"]["energy_j_per_sample"] is None
    modelled = ran.report["chosen"]["energy_modelled"]
    assert 0 < modelled["low"] < modelled["value"] < modelled["high"]


@pytest.fixture
def powercap(tmp_path: Path) -> Iterator[Path]:
    """A powercap tree that a script advances from the CPU time used."""
    tree = tmp_path / "powercap"
    process = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "support" / "powercap_sim.py", tree,
         "--idle-w", "10", "--per-core-w", "20"],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    yield tree
    process.kill()
    process.wait()


@pytest.mark.slow
@pytest.mark.serial  # joules come from all CPU time
def test_energy_steers_the_choice(run: Run, powercap: Path) -> None:
    given = ("--powercap-root", powercap, "--powercap-label", "simulated", "--max-drop", "0.05")
    options = (*QUICK, *given, "--without", "compiled,prune,ddp")
    loose = run(MLP, *options, "--energy", "1J", "--train-energy", "100kJ")
    assert loose.code == 0, loose.out + loose.err
    assert loose.verdicts["energy"] == loose.verdicts["train_energy"] == "MET"
    assert "simulated" in loose.out
    assert loose.report is not None
    joules = loose.report["chosen"]["energy_j_per_sample"]
    assert joules > 0
    broken = run(MLP, *options, "--energy", f"{joules * 0.03:.3g}J", "--train-energy", "1mJ")
    assert broken.code == 3, broken.out
    assert broken.verdicts["energy"] == "NOT_MET"
    assert broken.verdicts["train_energy"] == "NOT_MET"


@pytest.mark.slow
def test_only_and_without(run: Run) -> None:
    ran = run(MLP, *QUICK, "--only", "runtime=eager", "--without", "prune,ddp,bf16")
    assert ran.report is not None, ran.err
    trials = [t["deployment"] for t in ran.report["deploy_trials"]]
    assert {t["runtime"] for t in trials} == {"eager"}
    assert not any(t["compress"] for t in trials)
    # the user's own module, not an exported program, which is slower when run eagerly
    assert (ran.folder / "artifact" / "model.py").exists()
    excluded = {o["name"] for o in ran.report["survey"]["options"] if o["excluded_by_user"]}
    assert excluded >= {"prune", "onnxruntime", "compiled"}


@pytest.mark.slow
def test_a_plan_forced_to_ddp_learns_what_single_learns(tmp_path: Path) -> None:
    losses = {}
    for parallel, ranks in (("single", 1), ("ddp", 2)):
        plan = Plan(
            task="digits_mlp",
            source_sha256=None,
            seed=0,
            recipe=Recipe(lr=3e-3, parallel=parallel, ranks=ranks),
            epochs=4,
            deployment=Deployment(),
        )
        path = tmp_path / f"{parallel}.json"
        path.write_bytes(codec.encode(plan))
        done = command("execute", path, MLP, "--out", tmp_path / parallel)
        report = read(tmp_path / parallel)
        assert report is not None, done.stderr
        assert report["chosen"]["plan"]["recipe"]["parallel"] == parallel
        losses[parallel] = report["execution"]["step_losses"]
    assert len(losses["ddp"]) == len(losses["single"]) > 10
    assert losses["ddp"] == pytest.approx(losses["single"], rel=1e-5)
