"""Simulated time: clocks that move by themselves or by script, processes with a known
quantile, and a machine whose launches a test writes down.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from autotune.context import RunContext, Silent
from autotune.deployment.evaluator import DeploymentEvaluator
from autotune.records import job as jobs
from autotune.records.budget import Budget, Effort
from autotune.records.hardware import Profile
from autotune.records.job import Result
from autotune.records.plan import Deployment, Recipe
from autotune.records.task import Survey, TaskSpec
from autotune.worker.measure.timing import Clock
from tests.support.bridges import FunctionBridge
from tests.support.simulated import OPTIONS, TRAITS, Simulation, info

PLAN = Deployment(runtime="onnxruntime")


class Ticking:
    """A clock in nanoseconds: each reading takes ``read_ns``; sleeping and work are exact.
    ``step_ns`` is its resolution.
    """

    def __init__(self, read_ns: int = 50, step_ns: int = 1) -> None:
        self.wall = self.cpu = 0
        self.read_ns, self.step_ns = read_ns, step_ns

    def now_ns(self) -> int:
        self.wall += self.read_ns
        return self.wall // self.step_ns * self.step_ns

    def spend(self, wall_s: float, cpu_s: float | None = None) -> None:
        self.wall += round(wall_s * 1e9)
        self.cpu += round((wall_s if cpu_s is None else cpu_s) * 1e9)

    def clock(self) -> Clock:
        return Clock(self.now_ns, lambda: self.cpu, lambda s: self.spend(s, 0.0))


def normal(rng: np.random.Generator, shape: tuple[int, ...], correlation: float = 0.0) -> Any:
    """Standard normal [..., calls], AR(1) along the last axis from its stationary state."""
    out = rng.standard_normal(shape)
    if correlation:
        fresh = math.sqrt(1 - correlation**2)
        for call in range(1, shape[-1]):
            out[..., call] = correlation * out[..., call - 1] + fresh * out[..., call]
    return out


Script = Callable[[jobs.Measure, int, bool], dict[str, Any]]
"""(job, how many launches of this artifact came before, is it the baseline) -> fields of the
launch that differ from the usual ones."""


@dataclass
class Scripted(Simulation):
    """A simulated machine whose launches are written down."""

    script: Script = lambda job, number, baseline: {}
    launched: dict[str, int] = field(default_factory=dict)
    measured: list[jobs.Measure] = field(default_factory=list)

    def _measure(self, job: jobs.Measure) -> Result:
        build = self.built[job.artifact]
        number = self.launched.get(job.artifact, 0)
        self.launched[job.artifact] = number + 1
        self.measured.append(job)
        result = super()._measure(job)
        assert isinstance(result.answer, jobs.Measured)
        fields = self.script(job, number, build.runtime == "eager" and not build.compress)
        failure = fields.pop("failure", None)
        if failure is not None:
            return Result(failure=failure, wall_s=1.0)
        if "latency_s" in fields:
            fields["latency_s"] = tuple(map(float, fields["latency_s"]))
        launch = msgspec.structs.replace(result.answer.launch, **fields)
        return msgspec.structs.replace(result, answer=jobs.Measured(launch=launch))


def lab(
    root: Path, profile: Profile, script: Script, budget: Budget, time_s: float = 600.0
) -> tuple[DeploymentEvaluator, Scripted]:
    """A laboratory on a scripted machine, ready to verify."""
    machine = Scripted(root, profile, script=script)
    survey = Survey(task=info(), traits=TRAITS, options=OPTIONS)
    run = RunContext(
        bridge=FunctionBridge(machine.answer),
        spec=TaskSpec(kind="file", path="model.py"),
        budget=budget,
        effort=Effort(time_s=time_s),
        listener=Silent(),
        profile=profile,
        survey=survey,
    )
    return DeploymentEvaluator(run, "weights.safetensors", Recipe(), 0), machine
