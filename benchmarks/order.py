"""The deploy search on simulated machines, with parts left out.  ``python -m benchmarks.order``

    simulated machine (random speeds, losses of quality, build times, noise)
        -> the whole of `autotune run`, on its clock -> latency of the chosen plan / the optimum's

Arms, on the same machines: the search as it is; *none deferred* takes the initial configurations
in their fixed order, compilers last; *no race* leaves out the further launches of the leading
plans; *TPE alone* leaves out the race and the surrogate, so that Optuna's sampler proposes.
Nothing is measured: the same arguments give the same figures.  A run takes some 3 s.
"""

import argparse
import contextlib
import math
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

from autotune.api import tune
from autotune.deployment import initial_order, racing
from autotune.deployment.evaluator import DeploymentEvaluator
from autotune.deployment.metrics import FINALISTS, QUALITY_ALPHA
from autotune.records import job as jobs
from autotune.records.budget import Budget, Effort
from autotune.records.job import Result
from autotune.records.plan import Deployment, Recipe, Step, Value
from autotune.records.task import Dim, TaskSpec
from autotune.search import surrogate
from autotune.search.study import Initial
from autotune.stats import paired
from autotune.stats.launch_ratio import student
from autotune.task import Task
from tests.support import made, simulated
from tests.support.bridges import FunctionBridge

STEPS: dict[str, tuple[str | None, tuple[Dim, ...]]] = {
    "int8_static": (
        "onnxruntime",
        (Dim(name="method", kind="choice", choices=("minmax", "mse", "percentile")),
         Dim(name="restored", kind="choice", choices=(0, 2))),
    ),
    "int8_dynamic": ("onnxruntime", ()),
    "int4_weights": ("onnxruntime", (Dim(name="block", kind="choice", choices=(32, 128)),)),
    "int8_openvino": (
        "openvino",
        (Dim(name="preset", kind="choice", choices=("mixed", "performance")),
         Dim(name="restored", kind="choice", choices=(0, 2, 4))),
    ),
}  # fmt: skip
"""Quantizers: their runtime, and their dimensions."""
RUNTIMES = ("eager", "compiled", "aoti", "onnxruntime", "openvino")
TAKES = {"onnxruntime": "onnx", "openvino": "openvino"}
LEVEL = Dim(name="macs_kept", kind="float", low=0.05, high=0.95, step=0.05, neutral=1.0)
KINDS = Dim(name="importance", kind="choice", choices=("taylor", "magnitude"))
OPTIONS = (
    *(
        made.option(kind="runtime", name=name, available=True, takes=TAKES.get(name, "module"))
        for name in RUNTIMES
    ),
    made.option(
        kind="compress", name="prune", available=True, takes="module", gives="module",
        group="prune", trains=True, dims=(LEVEL, KINDS),
    ),
    *(
        made.option(
            kind="compress", name=name, available=True, takes=TAKES[runtime], gives=TAKES[runtime],
            group="quantize", runtimes=(runtime,), dims=dims,
        )
        for name, (runtime, dims) in STEPS.items()
        if runtime is not None
    ),
)  # fmt: skip
BUILD_S = {"compiled": 14.0, "aoti": 15.0}
RECOVERY_S, EXPORT_S, LAUNCH_S = 7.0, 0.4, 1.0
MAX_DROP = 0.02
ARMS = ("as it is", "none deferred", "no race", "TPE alone")
_SPELL_S, _SLOW_SHARE, _SLOWER = 12.0, 0.2, 1.6
"""A machine is slower for a fifth of all spells of 12 s, by this factor."""


@dataclass
class Machine(simulated.Simulation):
    """Speeds and losses by ``seed``; a launch varies by ``noise``, and more in slow spells."""

    seed: int = 0
    noise: float = 0.1
    clock_s: float = 0.0
    recovered: set[tuple[Any, ...]] = field(default_factory=set)

    def __post_init__(self) -> None:
        draw = random.Random(self.seed)
        own = draw.uniform
        self.speed = {"eager": 0.0, "compiled": own(-0.6, 0.4), "aoti": own(-0.7, 0.3)}
        self.speed |= {"onnxruntime": -own(0.4, 1.2), "openvino": -own(0.1, 1.2)}
        self.gain = {name: own(-0.3, 0.8) for name in STEPS}
        self.loss = {name: own(0.0, 7.0) for name in STEPS}
        self.fixed, self.knee, self.steep = own(0.05, 0.4), own(0.05, 0.95), own(10, 90)
        self.magnitude = own(-2.0, 3.0)
        self.latency_factor = self._noise

    def _own(self, *what: object) -> float:
        """A number in -1..1, fixed for this machine and ``what``."""
        return random.Random(f"{self.seed}{what}").uniform(-1, 1)

    def latency_s(self, build: jobs.Build) -> float:
        log = self.speed[build.runtime]
        for step in build.compress:
            if step.name == "prune":
                level = float(step.params["macs_kept"])
                log += math.log(self.fixed + (1 - self.fixed) * level)
                log += 0.08 * self._own(build.runtime, level)
            else:
                log += -self.gain[step.name] + 0.15 * self._own(step.name, build.runtime)
                log += sum(0.05 * self._own(*pair) for pair in step.params.items())
        return 1e-3 * math.exp(log)

    def wrong(self, build: jobs.Build) -> int:
        lost = 10.0
        for step in build.compress:
            if step.name == "prune":
                level = float(step.params["macs_kept"])
                lost += self.steep * max(0.0, self.knee - level) ** 1.3
                if step.params["importance"] == "magnitude":
                    lost += self.magnitude * (1 - level)
            else:
                lost += self.loss[step.name]
                lost += sum(self._own("lost", *pair) for pair in step.params.items())
        return max(0, round(lost))

    def _noise(self, build: jobs.Build, job: jobs.Measure) -> float:
        draw = random.Random(f"{self.seed}{build.out}{job.seed}{self.clock_s:.3f}")
        spell = random.Random(f"{self.seed}{self.clock_s // _SPELL_S}")
        slow = _SLOWER if spell.random() < _SLOW_SHARE else 1.0
        return slow * math.exp(draw.gauss(0.0, self.noise))

    def answer(self, job: jobs.Job[Any]) -> Result[Any]:
        result = super().answer(job)
        wall_s = result.wall_s
        if isinstance(job, jobs.Build):
            wall_s = EXPORT_S + BUILD_S.get(job.runtime, 0.0)
            levels = tuple(repr(step) for step in job.compress if step.name == "prune")
            if levels and levels not in self.recovered:
                self.recovered.add(levels)
                wall_s += RECOVERY_S
        elif isinstance(job, jobs.Measure):
            wall_s = LAUNCH_S
        self.clock_s += wall_s
        return msgspec.structs.replace(result, wall_s=wall_s, work_s=wall_s)

    def optimum_s(self) -> float:
        """Latency of the fastest plan whose drop of quality can be certified."""
        rows, alpha = simulated.ROWS, QUALITY_ALPHA / FINALISTS
        kept = (n for n in range(rows) if paired.p_value(n, 0, rows, MAX_DROP) > alpha)
        most = 10 + next(kept) - 1
        plans = (_build(runtime, steps) for runtime in RUNTIMES for steps in _steps(runtime))
        return min(self.latency_s(plan) for plan in plans if self.wrong(plan) <= most)


def _build(runtime: str, steps: tuple[Step, ...]) -> jobs.Build:
    task = TaskSpec(kind="file", path="model.py")
    return jobs.Build(
        task=task, weights="", compress=steps, runtime=runtime, threads=1, batch_size=1, seed=0,
        recipe=Recipe(batch_size=1), recovery_epochs=1.0, out="",
    )  # fmt: skip


def _steps(runtime: str) -> Iterator[tuple[Step, ...]]:
    """Every compression for a runtime."""
    pruned: list[tuple[Step, ...]] = [()]
    pruned += [
        (Step(name="prune", params={"macs_kept": level, "importance": kind}),)
        for level in surrogate.levels(LEVEL)
        for kind in KINDS.choices
    ]
    quantized: list[tuple[Step, ...]] = [()]
    for name, (served, dims) in STEPS.items():
        found: list[dict[str, Any]] = [{}]
        for dim in dims:
            found = [{**params, dim.name: value} for params in found for value in dim.choices]
        quantized += [(Step(name=name, params=p),) for p in found if served == runtime]
    return ((*first, *second) for first in pruned for second in quantized)


@contextlib.contextmanager
def _without(arm: str) -> Iterator[None]:
    """The search with something left out."""

    def none_deferred(
        _: DeploymentEvaluator, initial: Sequence[Mapping[str, Value]]
    ) -> tuple[list[Initial], list[initial_order.Predicted]]:
        return [(values, "initial") for values in initial], []

    with contextlib.ExitStack() as left:
        if arm == "none deferred":
            left.enter_context(mock.patch.object(initial_order, "arrange", none_deferred))
        if arm in ("no race", "TPE alone"):
            left.enter_context(mock.patch.object(racing, "run", return_value=None))
        if arm == "TPE alone":
            for name, value in (("propose", None), ("unpromising", False)):
                left.enter_context(mock.patch.object(surrogate, name, return_value=value))
        yield


def ratio(arm: str, seed: int, noise: float, time_s: float) -> tuple[float, int]:
    """The chosen plan's true latency over the optimum's, and how many plans were tried."""
    machines: list[Machine] = []

    def make(work: Path) -> FunctionBridge:
        machine = Machine(work, made.profile(), options=OPTIONS, seed=seed, noise=noise)
        machine.task = simulated.info(pretrained=True)
        machines.append(machine)
        return FunctionBridge(machines[-1].answer)

    with tempfile.TemporaryDirectory() as folder, _without(arm):
        path = Path(folder) / "model.py"
        path.write_text("")
        report, _ = tune(
            Task.from_file(path),
            Budget(goal="latency", max_drop=MAX_DROP, percentile=50),
            Effort(time_s=time_s, threads=1, seed=seed),
            out=Path(folder) / "out",
            bridge=make,
        )
    assert report.chosen is not None
    plan: Deployment = report.chosen.plan.deployment
    own = machines[0].latency_s(_build(plan.runtime, plan.compress))
    return own / machines[0].optimum_s(), len(report.deploy_trials)


def main() -> int:
    """All arms on all machines, and each against the first, paired by machine."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--machines", type=int, default=30)
    parser.add_argument("--noise", type=float, default=0.1, help="of a launch, as a logarithm")
    parser.add_argument("--time", type=float, default=180.0, help="seconds of each run")
    parser.add_argument("--arm", choices=ARMS, action="append", help="these alone; may repeat")
    given = parser.parse_args()
    first: list[float] = []
    for arm in given.arm or ARMS:
        found = [ratio(arm, seed, given.noise, given.time) for seed in range(given.machines)]
        logs = [math.log(value) for value, _ in found]
        tried = statistics.fmean(count for _, count in found)
        text = f"{arm:13} {math.exp(statistics.fmean(logs)):.3f} times the optimum, "
        text += f"worst {math.exp(max(logs)):.2f}; {tried:.0f} plans tried"
        first = first or logs
        if first is not logs and len(logs) > 1:
            gaps = [mine - other for mine, other in zip(logs, first, strict=True)]
            mean, error = statistics.fmean(gaps), statistics.stdev(gaps) / math.sqrt(len(gaps))
            low, high = (mean + sign * student(0.025, len(gaps) - 1) * error for sign in (-1, 1))
            text += f"; {math.exp(mean):.3f} ({math.exp(low):.3f} to {math.exp(high):.3f}) times"
        print(text, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
