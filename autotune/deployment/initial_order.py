"""Before the first candidate: what the estimates say of the dense plans, and the order of seeds.

    Replay job (seconds) + the measured baselines --estimate--> predicted latency of each seed

Of each group of seeds the fastest predicted come first, and where the batch is searched they start
at the batch of the highest predicted throughput.  Predictions order; they reject nothing.  What
AOTInductor compiles is predicted as `torch.compile` of the same, OpenVINO's as ONNX Runtime's.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import msgspec

from autotune import units
from autotune.context import RunContext
from autotune.hardware import op_latency
from autotune.records import job as jobs
from autotune.records.measurement import Interval, OpReplay
from autotune.records.plan import Deployment, Recipe, Value
from autotune.records.report import DeployTrial

_SHARE = 0.02
_MOST_S = 10.0
_LEAST_S = 1.0
_COMPILED = ("compiled", "aoti")
"""Runtimes that a compiler makes."""
_ALIKE = {"aoti": "compiled", "openvino": "onnxruntime"}
"""Runtimes that are predicted as another."""


class Seed(NamedTuple):
    """Values of the space, why they are tried, and the predicted median of one call in seconds
    (infinite where nothing is predicted).
    """

    values: Mapping[str, Value]
    why: str
    predicted_s: float


class Foresight:
    """``replays`` is empty where nothing could be replayed: then nothing is predicted."""

    def __init__(self, replays: Sequence[OpReplay], baselines: Sequence[DeployTrial]) -> None:
        self._replays = tuple(replays)
        measured = [
            op_latency.Anchor("eager", d.batch_size, d.threads, t.latency_s.p50)
            for t in baselines
            if (d := t.deployment).runtime == "eager" and d.lossless and t.latency_s is not None
        ]
        self._anchors = (*measured, *op_latency.anchors(self._replays)[: 0 if measured else None])

    def latency_s(self, deployment: Deployment) -> Interval | None:
        """The predicted median of one call."""
        if not self._replays:
            return None
        alike = _ALIKE.get(deployment.runtime, deployment.runtime)
        same = msgspec.structs.replace(deployment, runtime=alike)
        return op_latency.deployment_s(self._replays, self._anchors, same)

    def apart(
        self, seeds: Sequence[tuple[Mapping[str, Value], Deployment]], batches: Sequence[int]
    ) -> tuple[list[tuple[Mapping[str, Value], str]], list[Seed]]:
        """Seeds in `order`, and apart from them those that need a compiler, which costs ten times
        what an export does, where they are predicted: the fastest first.
        """
        compiled = [s for s in seeds if s[1].runtime in _COMPILED]
        dear = [s for s in compiled if self.latency_s(s[1]) is not None]
        others = [s for s in seeds if s not in dear]
        return self.order(others, batches), self._group(dear, batches)

    def order(
        self, seeds: Sequence[tuple[Mapping[str, Value], Deployment]], batches: Sequence[int]
    ) -> list[tuple[Mapping[str, Value], str]]:
        """Seeds at the batch of the highest throughput, the fastest predicted first within each
        group: the usual order's groups (dense, compressed, dear to build) stay, so that a short
        run still tries a lossless plan.
        """
        out: list[Seed] = []
        for _, group in groupby(seeds, key=lambda seed: seed[1].lossless):
            out += self._group(list(group), batches)
        return [(seed.values, seed.why) for seed in out]

    def _group(
        self, seeds: Sequence[tuple[Mapping[str, Value], Deployment]], batches: Sequence[int]
    ) -> list[Seed]:
        out: list[tuple[float, Seed]] = []
        for values, deployment in seeds:
            rates = {b: self._per_sample(deployment, b) for b in batches}
            known = {b: rate for b, rate in rates.items() if rate is not None}
            if not known:
                out.append((math.inf, Seed(values, "initial", math.inf)))
                continue
            batch = min(known, key=lambda b: known[b])
            at = {**values, "batch_size": batch} if len(batches) > 1 else values
            call_s = known[batch] * batch
            why = f"initial, predicted {units.show(call_s, 's')}"
            out.append((known[batch], Seed(at, why, call_s)))
        return [seed for _, seed in sorted(out, key=lambda item: item[0])]

    def _per_sample(self, deployment: Deployment, batch: int) -> float | None:
        found = self.latency_s(msgspec.structs.replace(deployment, batch_size=batch))
        return found.value / batch if found is not None else None


def look(
    run: RunContext,
    recipe: Recipe,
    batches: Sequence[int],
    threads: Sequence[int],
    baselines: Sequence[DeployTrial],
) -> Foresight:
    """Replay the operators of the recipe's model for a fiftieth of the run's time, 10 s at most."""
    seconds = min(_MOST_S, _SHARE * run.effort.time_s)
    if seconds < _LEAST_S or run.profile.gpus:
        return Foresight((), baselines)
    names = {o.name for o in run.survey.options if o.kind == "runtime" and o.available}
    job = jobs.Replay(
        task=run.task(recipe),
        batch_sizes=tuple(batches),
        threads=tuple(threads),
        onnx="onnxruntime" in names,
        budget_s=seconds,
    )
    answer = run.bridge.run(job, timeout_s=30.0 + 3 * seconds).answer
    if answer is None:
        run.listener.note(
            "The model's operators could not be replayed: nothing is predicted for the first trials"
        )
        return Foresight((), baselines)
    return Foresight(answer.replays, baselines)
