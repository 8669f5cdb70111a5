"""The order of the deploy search on a simulated machine: what needs a compiler may wait."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune.control.bridge import FunctionBridge
from autotune.records.budget import Budget, Effort
from autotune.records.hardware import Profile
from autotune.records.report import Report
from autotune.tune import Task, tune
from tests.support import simulated
from tests.support.simulated import Simulation

Go = Callable[..., Report]


@pytest.fixture
def go(tmp_path: Path, profile: Profile) -> Go:
    model = tmp_path / "model.py"
    model.write_text("raise SystemExit('never loaded here')\n")

    def run(trials: int, time_s: float = 240, **effort: Any) -> Report:
        def make(work: Path) -> FunctionBridge:
            return FunctionBridge(Simulation(work, profile).answer)

        report, _ = tune(
            Task.from_file(model),
            Budget(goal="latency", max_drop=0.02),
            Effort(time_s=time_s, trials=trials, threads=1, **effort),
            out=tmp_path / "out",
            bridge=make,
        )
        return report

    return run


def runtimes(report: Report) -> list[str]:
    return [t.deployment.runtime for t in report.deploy_trials]


def test_a_compiler_predicted_slower_than_what_was_measured_waits(go: Go) -> None:
    """Predicted 0.7 ms; ONNX Runtime was measured at 0.4 ms."""
    assert "compiled" not in runtimes(go(7))


def test_it_is_tried_where_it_is_predicted_faster(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(simulated.RUNTIME, "compiled", 0.2)
    first = runtimes(go(8)).index("compiled")
    assert first <= 6


def test_it_is_tried_in_the_end_where_nothing_else_is_expected_to_gain(go: Go) -> None:
    tried = runtimes(go(30))
    assert "compiled" in tried[11:]
