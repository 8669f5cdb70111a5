"""A simulated machine: answers every job from formulas, in no time, without torch.

Latency, quality, memory and energy are simple functions of the plan, so that a test knows
which plan is best.  It writes the small files that the pipeline ships and records.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import get_args

import numpy as np

from autotune.records import job as jobs
from autotune.records.hardware import Profile
from autotune.records.job import Job, Result
from autotune.records.measurement import (
    Domain,
    EnergySource,
    EnergyWindow,
    Launch,
    Scores,
)
from autotune.records.plan import Optimizer
from autotune.records.report import Failure
from autotune.records.task import Dim, Option, TaskInfo
from tests.support import made

ROWS = 450


def info(**changes: object) -> TaskInfo:
    return made.info(**({"name": "simulated", "source_sha256": "ab" * 32} | changes))


TRAITS = made.traits()

OPTIONS = (
    made.option(kind="runtime", name="compiled", takes="module"),
    made.option(kind="runtime", name="eager", takes="module"),
    made.option(kind="runtime", name="onnxruntime", takes="onnx"),
    made.option(
        kind="compress",
        name="prune",
        takes="module",
        trains=True,
        gives="module",
        group="prune",
        dims=(Dim(name="macs_kept", kind="float", low=0.1, high=0.9, step=0.05, neutral=1.0),),
    ),
    made.option(
        kind="compress",
        name="int8_static",
        takes="onnx",
        gives="onnx",
        group="quantize",
    ),
    made.option(
        kind="compress",
        name="int8_dynamic",
        available=False,
        takes="onnx",
        gives="onnx",
        group="quantize",
        reason="the model has no Linear layers",
    ),
    made.option(kind="parallel", name="single"),
    made.option(kind="parallel", name="ddp"),
    Option(kind="precision", name="fp32", available=True),
    *(Option(kind="optimizer", name=name, available=True) for name in get_args(Optimizer)),
)
AWARE = made.option(
    kind="compress",
    name="int8_aware",
    takes="module",
    gives="module",
    group="aware",
    runtimes=("onnxruntime",),
    trains=True,
    searched=False,
)
"""Beside `OPTIONS`: what is tried for another step's sake alone."""

GPU_OPTIONS = (
    made.option(kind="runtime", name="cuda_eager", takes="module"),
    made.option(kind="runtime", name="cuda_graphs", takes="module"),
    made.option(
        kind="compress",
        name="fp16",
        takes="module",
        gives="module",
        group="precision",
        runtimes=("cuda_eager", "cuda_graphs"),
    ),
)
"""Beside `OPTIONS`, on a machine with a GPU."""

RUNTIME = {
    "eager": 1.0, "compiled": 0.7, "onnxruntime": 0.4, "cuda_eager": 0.3, "cuda_graphs": 0.1
}  # fmt: skip


@dataclass
class Simulation:
    """``answer`` is what a `FunctionBridge` needs.

    ``fail`` maps a predicate's name (``train:3`` the third training, ``runtime:compiled``) to a
    failure.  ``power_w`` None means that the processor's energy cannot be measured, ``board_w``
    that there is no board.  ``latency_factor(build, job)`` multiplies one launch's latency.
    """

    root: Path
    profile: Profile
    task: TaskInfo = field(default_factory=info)
    power_w: float | None = None
    board_w: float | None = None
    fail: dict[str, Failure] = field(default_factory=dict)
    options: tuple[Option, ...] = OPTIONS
    spread: float = 0.02
    prune_floor: float = 0.0
    int8_lost: int = 1
    test_lost: int = 0  # rows of *test* that a compressed plan loses beyond those of *validation*
    latency_factor: Callable[[jobs.Build, jobs.Measure], float] = lambda build, job: 1.0
    seen: dict[str, int] = field(default_factory=dict)
    built: dict[str, jobs.Build] = field(default_factory=dict)

    def answer(self, job: Job) -> Result:
        kind = type(job).__name__.lower()
        count = self.seen[kind] = self.seen.get(kind, 0) + 1
        failure = self.fail.get(f"{kind}:{count}")
        if failure is not None:
            return Result(failure=failure, wall_s=0.2, work_s=0.2)
        result = getattr(self, f"_{kind}")(job)
        assert isinstance(result, Result)
        return result

    def _inspect(self, job: jobs.Inspect) -> Result:
        for part in ("validation", "test", "calibration"):
            self._rows(f"data/{part}.npz", np.zeros((ROWS, 4), np.float32))
        return Result(
            answer=jobs.Inspection(info=self.task, traits=TRAITS, weights="weights.safetensors"),
            wall_s=1.0,
            work_s=1.0,
        )

    def _rows(self, name: str, array: np.ndarray) -> None:  # type: ignore[type-arg]
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, kind="tensor", names=np.array([""]), f0=array)

    def _probe(self, job: jobs.Probe) -> Result:
        return Result(answer=jobs.Probed(profile=self.profile), wall_s=2.0, work_s=2.0)

    def _menu(self, job: jobs.Menu) -> Result:
        return Result(answer=jobs.Options(options=self.options), wall_s=0.1, work_s=0.1)

    def _sources(self, job: jobs.Sources) -> Result:
        if self.power_w is None:
            source = EnergySource(
                name="rapl", label="unavailable", reason="vm_guest", remedy="ask the host"
            )
        else:
            source = EnergySource(
                name="rapl", label="measured_counter", domains=("package-0",), origin="simulated"
            )
        found = (source,)
        if self.board_w is not None:
            board = EnergySource(name="nvml", label="measured_counter", domains=("nvml:gpu0",))
            found = (source, board)
        return Result(answer=jobs.EnergySources(sources=found), wall_s=0.1, work_s=0.1)

    def _throughput(self, job: jobs.Throughput) -> Result:
        rate = 1000.0 * job.recipe.threads * job.recipe.ranks**0.5
        answer = jobs.MeasuredThroughput(samples_per_s=rate, startup_s=0.1, peak_memory_bytes=10**8)
        return Result(answer=answer, wall_s=0.6, work_s=0.6)

    def _train(self, job: jobs.Train) -> Result:
        recipe = job.recipe
        gap = abs(math.log10(recipe.lr / 3e-3)) if recipe.optimizer.startswith("adam") else 1.0
        quality = 0.97 - 0.05 * gap
        losses = tuple(float(gap + 1.0 / rung) for rung in job.rungs)
        seconds = job.epochs * self.task.train_rows / 4000.0
        if job.weights_out:
            path = self.root / job.weights_out
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"weights")
        answer = jobs.Trained(
            epochs=job.epochs,
            steps=job.epochs * 10,
            stopped=False,
            train_losses=losses,
            val_losses=losses,
            qualities=(quality,) * len(losses),
            train_s=seconds,
            startup_s=0.1,
            samples_per_s=4000.0,
            peak_memory_bytes=2 * 10**8,
            energy=self._window(seconds),
        )
        reports = tuple(zip(job.rungs, losses, strict=True))
        return Result(answer=answer, wall_s=seconds + 0.2, work_s=seconds + 0.1, reports=reports)

    def _build(self, job: jobs.Build) -> Result:
        failure = self.fail.get(f"runtime:{job.runtime}")
        levels = [step.params["macs_kept"] for step in job.compress if step.name == "prune"]
        if any(float(level) < self.prune_floor for level in levels):
            least = {"prune.macs_kept": self.prune_floor}
            failure = Failure(kind="unsupported", message="cannot reach it", least=least)
        if failure is not None:
            return Result(failure=failure, wall_s=0.2, work_s=0.2)
        folder = self.root / job.out
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.bin").write_bytes(repr(job).encode())
        digest = sha256((folder / "model.bin").read_bytes()).hexdigest()
        text = f"{digest}  model.bin\n"
        (folder / "checksums").write_text(text)
        self.built[job.out] = job
        answer = jobs.Built(
            artifact=job.out,
            sha256=sha256(text.encode()).hexdigest(),
            files={"model.bin": digest},
            size_bytes=1000,
            stages=(),
        )
        return Result(answer=answer, wall_s=0.5, work_s=0.5)

    def latency_s(self, build: jobs.Build) -> float:
        """1 ms dense eager."""
        kept = 1.0
        for step in build.compress:
            kept *= 0.2 + 0.8 * float(step.params.get("macs_kept", 1.0))
            kept *= 0.5 if step.name.startswith("int8") and step.name != "int8_aware" else 1.0
        threads = 1.0 if build.threads == 1 else 0.9
        return 1e-3 * RUNTIME[build.runtime] * kept * threads * build.batch_size**0.7

    def wrong(self, build: jobs.Build) -> int:
        """Rows that go wrong beyond the dense model's ten."""
        lost = 10
        for step in build.compress:
            kept = float(step.params.get("macs_kept", 1.0))
            lost += round(max(0.0, 0.5 - kept) * 40)
            trained = any(other.name == "int8_aware" for other in build.compress)
            lost += (0 if trained else self.int8_lost) if step.name == "int8_static" else 0
        return lost

    def _measure(self, job: jobs.Measure) -> Result:
        build = self.built[job.artifact]
        center = self.latency_s(build) * self.latency_factor(build, job)
        noise = np.random.default_rng(job.seed).uniform(-self.spread, self.spread, job.min_calls)
        latency = tuple(float(x) for x in center * (1 + noise))
        if job.outputs and job.score_rows:
            worse_on_test = job.score_rows == "data/test.npz" and build.compress
            wrong = self.wrong(build) + (self.test_lost if worse_on_test else 0)
            self._rows(job.outputs, np.full((ROWS, 1), wrong, np.float32))
        launch = Launch(
            latency_s=latency,
            load_s=0.3,
            first_call_s=0.01,
            warmup_calls=10,
            settled=True,
            window_s=sum(latency),
            window_calls=len(latency),
            cpu_s=sum(latency),
            peak_memory_bytes=10**8 if build.runtime == "onnxruntime" else 3 * 10**8,
            energy=self._window(sum(latency), boards=job.boards),
            device_memory_bytes=10**9 if build.runtime.startswith("cuda") else None,
            work_s=1.0,
        )
        return Result(answer=jobs.Measured(launch=launch), wall_s=1.1, work_s=1.0)

    def _score(self, job: jobs.Score) -> Result:
        with np.load(self.root / job.outputs) as data:
            wrong = int(data["f0"][0, 0])
        scores = (0.0,) * wrong + (1.0,) * (ROWS - wrong)
        answer = jobs.Scored(scores=Scores(quality=1 - wrong / ROWS, rows=ROWS, per_sample=scores))
        return Result(answer=answer, wall_s=0.02, work_s=0.02)

    def _window(self, seconds: float, *, boards: bool = True) -> EnergyWindow | None:
        if self.power_w is None and self.board_w is None:
            return None
        watts = {"rapl:package-0": self.power_w, "nvml:gpu0": self.board_w if boards else None}
        domains = tuple(
            Domain(
                name=name,
                energy_j=value * seconds,
                label="measured_counter",
                origin="simulated",
                uncertainty_j=0.0,
            )
            for name, value in watts.items()
            if value is not None
        )
        return EnergyWindow(
            duration_s=seconds,
            domains=domains,
            total_j=sum(d.energy_j or 0.0 for d in domains) if domains else None,
            label="measured_counter" if domains else "unavailable",
            reason=None if domains else "vm_guest",
            uncertainty_j=0.0 if domains else None,
        )
