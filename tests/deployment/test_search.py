"""The order of the deploy search on a simulated machine: what needs a compiler may wait."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autotune.api import Task, tune
from autotune.records import job as jobs
from autotune.records.budget import Budget, Effort
from autotune.records.hardware import Profile
from autotune.records.report import Failure, Report
from autotune.records.task import Option
from tests.support import simulated
from tests.support.bridges import FunctionBridge
from tests.support.simulated import Simulation

Go = Callable[..., Report]


@pytest.fixture
def go(tmp_path: Path, profile: Profile) -> Go:
    model = tmp_path / "model.py"
    model.write_text("raise SystemExit('never loaded here')\n")

    def run(
        trials: int, time_s: float = 240, machine: type[Simulation] = Simulation, **effort: Any
    ) -> Report:
        def make(work: Path) -> FunctionBridge:
            return FunctionBridge(machine(work, profile).answer)

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
    """Predicted 0.85 ms; ONNX Runtime was measured at 0.4 ms."""
    assert "compiled" not in runtimes(go(7))


@dataclass
class FastCompiler(Simulation):
    """Whose prior says that a compiler takes a fifth of eager's time."""

    options: tuple[Option, ...] = tuple(
        msgspec.structs.replace(o, time_left=0.2) if o.name == "compiled" else o
        for o in simulated.OPTIONS
    )


def test_it_is_tried_where_it_is_predicted_faster(go: Go) -> None:
    first = runtimes(go(8, machine=FastCompiler)).index("compiled")
    assert first <= 6


def test_it_is_tried_in_the_end_where_nothing_else_is_expected_to_gain(go: Go) -> None:
    tried = runtimes(go(30))
    assert "compiled" in tried[11:]


def test_what_compresses_for_a_compiler_that_waits_waits_too(go: Go) -> None:
    tried = [t.deployment for t in go(30).deploy_trials if t.deployment.runtime == "compiled"]
    assert tried
    assert tried[0].lossless


@dataclass
class Halved(Simulation):
    """Where a compiler is offered a model in bf16."""

    options: tuple[Option, ...] = (
        *simulated.OPTIONS,
        msgspec.structs.replace(simulated.GPU_OPTIONS[-1], name="bf16", runtimes=("compiled",)),
    )


def test_what_compresses_for_a_compiler_waits_beside_faster_int8(go: Go) -> None:
    """Which takes 0.2 ms."""
    assert "compiled" not in runtimes(go(8, machine=Halved))


def test_what_compresses_for_a_compiler_goes_ahead_of_it_where_it_is_predicted_faster(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16 predicted at half of 0.85 ms: worth it beside int8 in ONNX Runtime at 0.75 ms."""
    monkeypatch.setitem(simulated.RUNTIME, "onnxruntime", 1.5)
    report = go(8, machine=Halved)
    tried = [t.deployment for t in report.deploy_trials if t.deployment.runtime == "compiled"]
    assert [step.name for step in tried[0].compress] == ["bf16"]


def test_a_compiler_is_not_begun_in_the_time_that_is_kept_for_the_race(go: Go) -> None:
    report = go(30, time_s=45)
    assert len(report.deploy_trials) > 6
    assert "compiled" not in runtimes(report)


class Unprunable(Simulation):
    """No build with pruning succeeds."""

    def _build(self, job: jobs.Build) -> jobs.Result:
        if any(step.name == "prune" for step in job.compress):
            failure = Failure(kind="unsupported", message="cannot be pruned", never="prune")
            return jobs.Result(failure=failure, wall_s=0.2, work_s=0.2)
        return super()._build(job)


def test_a_model_that_cannot_be_pruned_fails_once(go: Go) -> None:
    report = go(14, machine=Unprunable)
    pruned = [
        t for t in report.deploy_trials if any(s.name == "prune" for s in t.deployment.compress)
    ]
    assert [t.state for t in pruned][:2] == ["failed", "skipped"]
    assert sum(t.state == "failed" for t in pruned) == 1
