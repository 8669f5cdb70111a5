"""The reuse benchmark's counting, on reports of a simulated machine."""

from pathlib import Path

import pytest

from autotune.control.bridge import FunctionBridge
from autotune.records.budget import Effort
from autotune.records.hardware import Profile
from autotune.records.report import Report
from autotune.tune import Task, tune
from benchmarks import reuse
from tests.support.simulated import Simulation


@pytest.fixture
def reports(tmp_path: Path, profile: Profile) -> tuple[Report, Report, Report]:
    path = tmp_path / "model.py"
    path.write_text("raise SystemExit('never loaded here')\n")

    def run(name: str, seed: int, like: str | None = None) -> Report:
        effort = Effort(time_s=300, trials=24, train_trials=12, seed=seed, like=like)
        return tune(
            Task.from_file(path),
            reuse.BUDGET,
            effort,
            profile=profile,
            out=tmp_path / name,
            bridge=lambda work: FunctionBridge(Simulation(work, profile).answer),
        )[0]

    first = run("first", 0)
    return first, run("second", 1, str(tmp_path / "first")), run("cold", 1)


def test_trials_are_counted_until_the_first_runs_plan(
    reports: tuple[Report, Report, Report],
) -> None:
    first, second, cold = reports
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
    tmp_path: Path, reports: tuple[Report, Report, Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reuse, "FOLDER", tmp_path)
    monkeypatch.setattr(reuse, "tune", None)
    assert reuse.main([]) in (0, 1)
    assert reuse.main(["--only", "first"]) == 0


def test_until_counts_from_one() -> None:
    assert reuse.until("abc", lambda number: number == 1) == 2
    assert reuse.until("abc", lambda number: False) is None
    assert reuse.Found("x", 5, None, 10).good
    assert not reuse.Found("x", None, 1, 10).good
