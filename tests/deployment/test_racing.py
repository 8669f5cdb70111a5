"""A plan that led by one favourable launch does not win."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune.api import Task, tune
from autotune.records import job as jobs
from autotune.records.budget import Budget, Effort
from autotune.records.hardware import Profile
from autotune.records.report import DeployTrial, Report
from tests.support.bridges import FunctionBridge
from tests.support.simulated import Simulation

Go = Callable[..., Report]
LEVEL = 0.6


@pytest.fixture
def go(tmp_path: Path, profile: Profile) -> Go:
    model = tmp_path / "model.py"
    model.write_text("raise SystemExit('never loaded here')\n")

    def run(latency_factor: Callable[..., float], time_s: float = 240, **effort: Any) -> Report:
        def make(work: Path) -> FunctionBridge:
            return FunctionBridge(Simulation(work, profile, latency_factor=latency_factor).answer)

        report, _ = tune(
            Task.from_file(model),
            Budget(goal="latency", max_drop=0.02),
            Effort(time_s=time_s, trials=30, **effort),
            out=tmp_path / "out",
            bridge=make,
        )
        return report

    return run


def screening(job: jobs.Measure) -> bool:
    """Whether it is the search's own launch, which writes the outputs."""
    return job.outputs is not None and job.score_rows == "data/validation.npz"


def fast_candidate(build: jobs.Build, job: jobs.Measure) -> float:
    """Once, in its screening, the model as it is looks twice as fast in ONNX Runtime."""
    plain = build.runtime == "onnxruntime" and not build.compress
    return 0.45 if plain and screening(job) else 1.0


def again(report: Report) -> list[DeployTrial]:
    return [t for t in report.deploy_trials if t.launches > 1]


def chosen(report: Report) -> Any:
    assert report.chosen is not None
    return report.chosen.plan.deployment


ONLY = {"without": ("prune", "compiled")}


def test_whoever_led_by_one_launch_falls_back(go: Go) -> None:
    report = go(fast_candidate, **ONLY)
    assert [s.name for s in chosen(report).compress] == ["int8_static"]
    assert len(again(report)) >= 2
    assert all(t.launches == 5 for t in again(report))
    (said,) = [m for m in report.messages if "measured again" in m]
    assert "was before" in said


def test_the_best_stays_first_where_its_launch_was_no_luck(go: Go) -> None:
    report = go(lambda build, job: 1.0, **ONLY)
    assert [s.name for s in chosen(report).compress] == ["int8_static"]
    (said,) = [m for m in report.messages if "measured again" in m]
    assert said.endswith("the best stayed first.")


def test_figures_of_the_screening_do_not_count(go: Go) -> None:
    report = go(fast_candidate, **ONLY)
    plain = next(
        t
        for t in report.deploy_trials
        if t.deployment.runtime == "onnxruntime" and t.deployment.lossless and t.launches > 1
    )
    assert plain.latency_s is not None
    assert plain.latency_s.p50 == pytest.approx(0.4e-3, rel=0.15)
    assert plain.latency_s.samples >= 5 * 104


def test_one_plan_near_the_best_is_not_raced(go: Go) -> None:
    report = go(lambda build, job: 1.0, without=("prune", "compiled", "int8_static"), threads=1)
    assert not again(report)
    assert not [m for m in report.messages if "measured again" in m]


def test_a_plan_that_only_looked_slow_is_found_once_the_fast_one_falls(go: Go) -> None:
    """Who leads after the first group without launches of its own has them too."""

    def latency_factor(build: jobs.Build, job: jobs.Measure) -> float:
        if not screening(job) or build.runtime != "onnxruntime":
            return 1.0
        return 0.25 if not build.compress else 1.0

    report = go(latency_factor, **ONLY)
    assert [s.name for s in chosen(report).compress] == ["int8_static"]
