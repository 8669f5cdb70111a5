"""The main job on the digits CNN, as the README shows it, and what is done with its report."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.scenarios.conftest import EXAMPLES, Ran, command, read

pytestmark = pytest.mark.serial

CNN = EXAMPLES / "digits_cnn.py"


@pytest.fixture(scope="module")
def main(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("digits") / "report"
    options = ("--goal", "latency", "--latency", "0.6x", "--max-drop", "0.02")
    limits = ("--time", "60s", "--epochs", "10", "--trials", "8", "--train-trials", "4")
    fewer = ("--without", "compiled,aoti")
    done = command("run", CNN, *options, *limits, *fewer, "--out", folder)
    return Ran(done.returncode, done.stdout, done.stderr, folder, read(folder))


def test_every_limit_is_met(main: Ran) -> None:
    assert main.code == 0, main.out + main.err
    assert main.verdicts == {"latency": "MET", "quality": "MET"}
    assert main.report is not None
    latency = next(v for v in main.report["verdicts"] if v["name"] == "latency")
    assert latency["samples"] >= 104
    assert latency["upper"] <= latency["limit"]
    low, high = main.report["chosen"]["quality_interval"]
    assert low < main.report["chosen"]["quality"] < high
    assert main.report["survey"]["task"]["train_rows"] == 900
    task = main.report["survey"]["task"]
    assert task["validation_rows"] + task["test_rows"] == 897


def test_the_figures_are_printed_beside_the_baselines(main: Ran) -> None:
    assert "p95 latency" in main.out
    assert "p95 95 % interval" in main.out
    assert "baseline" in main.out
    assert "(one request at a time, warm)" in main.out


def test_pruning_and_int8_were_combined(main: Ran) -> None:
    assert main.report is not None
    assert any(len(t["deployment"]["compress"]) == 2 for t in main.report["deploy_trials"])


def test_the_splits_are_listed_with_their_throughputs(main: Ran) -> None:
    assert main.report is not None
    found = {
        (s["parallel"], s["ranks"], s["threads"]): s["samples_per_s"]
        for s in main.report["survey"]["layouts"]
    }
    assert {("single", 1, 1), ("single", 1, 2)} <= set(found)  # ranks only where time allows
    assert all(rate > 0 for rate in found.values())


def test_the_folder_holds_what_it_should(main: Ran) -> None:
    names = {p.name for p in main.folder.iterdir()}
    assert names >= {"report.json", "report.md", "report.html", "trials.csv", "plan.json"}
    assert "work" not in names
    artifact = {p.name for p in (main.folder / "artifact").iterdir()}
    assert artifact >= {"load.py", "artifact.json", "checksums", "recorded.npz"}


LOADER = """
import sys
sys.modules["autotune"] = None
import importlib.util, numpy as np
spec = importlib.util.spec_from_file_location("load", sys.argv[1] + "/load.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
data = np.load(sys.argv[1] + "/recorded.npz")
predict = module.load()
# one by one, as the plan's batch is: dynamic int8 takes its ranges over a batch
out = np.concatenate([predict(data["in0"][i : i + 1]) for i in range(len(data["in0"]))])
error = float(np.abs(out - data["out0"]).max())
assert error < 1e-4, error
assert not any(name.startswith("autotune.") for name in sys.modules)
print("agrees", error)
"""


def test_the_loader_needs_no_autotune(main: Ran, tmp_path: Path) -> None:
    script = tmp_path / "use.py"
    script.write_text(LOADER)
    done = subprocess.run(
        [sys.executable, "-I", script, main.folder / "artifact"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert "agrees" in done.stdout, done.stderr


def test_verify_agrees_with_the_verdicts(main: Ran) -> None:
    with_model = command("verify", main.folder, CNN)
    assert with_model.returncode == 0, with_model.stdout + with_model.stderr
    assert "MET" in with_model.stdout
    without = command("verify", main.folder)
    assert without.returncode == 4, without.stdout + without.stderr
    assert "NOT_MEASURED" in without.stdout
    assert "outputs agree" in without.stdout


def test_verify_with_another_limit(main: Ran) -> None:
    done = command("verify", main.folder, "--latency", "1us")
    assert done.returncode == 3
    assert "NOT_MET" in done.stdout
    done = command("verify", main.folder, CNN, "--min-quality", "0.9999")
    assert done.returncode == 3
    assert "min quality" in done.stdout


def test_verify_refuses_a_changed_artifact(main: Ran, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(main.folder, copy)
    with (copy / "artifact" / "load.py").open("a") as file:
        file.write("# changed\n")
    done = command("verify", copy)
    assert done.returncode == 2
    assert "has changed" in done.stderr


def test_executing_the_plan_gives_the_same_quality(main: Ran, tmp_path: Path) -> None:
    done = command("execute", main.folder / "plan.json", CNN, "--out", tmp_path / "again")
    report = read(tmp_path / "again")
    assert report is not None, done.stderr
    assert main.report is not None
    low, high = main.report["chosen"]["quality_interval"]
    assert low <= report["chosen"]["quality"] <= high
    first, second = main.report["chosen"]["plan"], report["chosen"]["plan"]
    assert first["deployment"] == second["deployment"]
    assert first["recipe"] == second["recipe"]


@pytest.mark.parametrize("kind", ["text", "md", "html", "json", "csv"])
def test_a_report_is_rendered_again(main: Ran, kind: str) -> None:
    done = command("report", main.folder, "--format", kind)
    assert done.returncode == 0
    assert len(done.stdout) > 200
