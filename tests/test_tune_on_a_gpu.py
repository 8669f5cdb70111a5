"""A whole run on a simulated machine that has a GPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autotune.api import Task, tune
from autotune.records.budget import Budget, Effort, Limit
from autotune.records.hardware import Gpu, Leaf, Profile
from autotune.records.report import Failure, Report
from autotune.report.view import figures
from tests.support.bridges import FunctionBridge
from tests.support.simulated import GPU_OPTIONS, OPTIONS, Simulation

Go = Callable[..., Report]


@pytest.fixture
def go(tmp_path: Path, profile: Profile) -> Go:
    rate = Leaf(value=1e14, unit="FLOP/s", source="measured")
    gpu = Gpu(index=0, name="made up", memory_bytes=1 << 34, figures={"gemm_fp16_flop_per_s": rate})
    model = tmp_path / "model.py"
    model.write_text("raise SystemExit('never loaded here')\n")

    def run(budget: Budget, effort: Effort | None = None, **sim: Any) -> Report:
        on = msgspec.structs.replace(profile, gpus=(gpu,))

        def make(work: Path) -> FunctionBridge:
            return FunctionBridge(
                Simulation(work, on, **{"options": (*GPU_OPTIONS, *OPTIONS), **sim}).answer
            )

        report, _ = tune(
            Task.from_file(model),
            budget,
            effort or Effort(time_s=120, trials=30),
            out=tmp_path / f"out{len(list(tmp_path.iterdir()))}",
            bridge=make,
        )
        return report

    return run


def trial(report: Report, runtime: str) -> Any:
    return next(
        t
        for t in report.deploy_trials
        if t.deployment.runtime == runtime and t.deployment.lossless and t.state == "complete"
    )


def test_the_baseline_and_the_plan_are_the_gpus(go: Go) -> None:
    report = go(Budget(latency=Limit(value=0.6, relative=True), max_drop=0.02))
    assert report.exit_code == 0
    assert report.baseline is not None
    assert report.chosen is not None
    assert report.baseline.plan.deployment.runtime == "cuda_eager"
    assert report.chosen.plan.deployment.runtime == "cuda_graphs"
    assert report.chosen.plan.deployment.threads == 1
    assert dict(figures(report.chosen, 95.0))["memory of the GPU"] == "1.00 GB"
    assert {t.deployment.runtime for t in report.deploy_trials} > {"eager", "cuda_eager"}


def test_only_the_plans_own_devices_count(go: Go) -> None:
    report = go(Budget(energy=Limit(value=0.05), max_drop=0.02), board_w=100.0)
    assert trial(report, "cuda_eager").energy_j_per_sample == pytest.approx(0.03, rel=0.05)
    other = trial(report, "onnxruntime")
    assert other.energy_j_per_sample is None  # a board that idles beside it says nothing of it
    assert other.energy_modelled is not None
    assert trial(report, "cuda_eager").energy_modelled is None  # the model is of processors
    (energy,) = (v for v in report.verdicts if v.name == "energy")
    assert (energy.verdict, energy.source) == (
        "MET",
        "measured_counter (simulated): nvml:gpu0",
    )
    both = go(Budget(energy=Limit(value=0.05), max_drop=0.02), board_w=100.0, power_w=50.0)
    assert trial(both, "cuda_eager").energy_j_per_sample == pytest.approx(0.045, rel=0.05)
    assert trial(both, "onnxruntime").energy_j_per_sample == pytest.approx(0.02, rel=0.2)


def test_a_model_that_the_gpu_cannot_serve_is_served_by_the_processor(go: Go) -> None:
    failure = Failure(kind="error", message="Expected all tensors to be on the same device")
    failing = {"runtime:cuda_eager": failure, "runtime:cuda_graphs": failure}
    report = go(Budget(latency=Limit(value=0.6, relative=True), max_drop=0.02), fail=failing)
    assert report.exit_code == 0
    assert report.baseline is not None
    assert report.baseline.plan.deployment.runtime == "eager"
    assert report.chosen is not None
    assert report.chosen.plan.deployment.runtime == "onnxruntime"


def test_without_its_device_nothing_of_it_is_used(go: Go) -> None:
    report = go(
        Budget(latency=Limit(value=0.6, relative=True), max_drop=0.02),
        Effort(time_s=120, trials=30, device="cpu", without=("cuda_eager", "cuda_graphs")),
    )
    assert report.baseline is not None
    assert report.baseline.plan.deployment.runtime == "eager"
