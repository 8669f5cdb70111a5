"""The reuse benchmark's counting, on reports of a simulated machine."""

from pathlib import Path

import pytest

from autotune.api import Task, tune
from autotune.records.budget import Effort
from autotune.report import run_folder
from benchmarks.reuse import __main__ as reuse
from tests.support import made
from tests.support.bridges import FunctionBridge
from tests.support.simulated import Simulation


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short runs as the benchmark keeps them."""
    root, machine = tmp_path_factory.mktemp("reuse"), made.profile()
    path = root / "model.py"
    path.write_text("raise SystemExit('never loaded here')\n")
    for name in reuse.WIDTHS:
        like = str(root / "first") if name == "second" else None
        tune(
            Task.from_file(path),
            reuse.BUDGET,
            Effort(time_s=300, trials=14, train_trials=8, seed=int(name != "first"), like=like),
            profile=machine,
            out=root / name,
            bridge=lambda work: FunctionBridge(Simulation(work, machine).answer),
        )
    return root


def test_trials_are_counted_until_the_first_runs_plan(folder: Path) -> None:
    first, second, cold = (run_folder.load_report(folder / name) for name in reuse.WIDTHS)
    found = reuse.deployments(first, second, cold)
    assert found.first == len(first.deploy_trials)
    assert found.needed is not None
    reached = second.deploy_trials[found.needed - 1]
    assert reached.latency_s is not None
    assert reached.latency_s.p50 <= reuse.NEAR * reuse.wanted_s(first, second, cold)
    assert found.good
    trained = reuse.recipes(first, second, cold)
    assert trained.needed is not None
    assert second.train_trials[trained.needed - 1].state == "complete"


def test_a_run_that_is_complete_is_not_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reuse, "FOLDER", folder)
    monkeypatch.setattr(reuse, "tune", None)
    assert reuse.main([]) in (0, 1)
    assert reuse.main(["--only", "first"]) == 0


def test_until_counts_from_one() -> None:
    assert reuse.until("abc", lambda number: number == 1) == 2
    assert reuse.until("abc", lambda number: False) is None
    assert reuse.Found("x", 5, None, 10).good
    assert not reuse.Found("x", None, 1, 10).good
