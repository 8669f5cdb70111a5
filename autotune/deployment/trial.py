"""One candidate of the deploy search: built, measured, and judged on growing parts of *validation*.

    build --> measure, outputs on 1/16 of the rows --> clearly worse? stop : 1/4 --> ... all rows

Parts are taken only where one evaluation of all rows is dear.  They are evenly spaced, and
compared with the baseline's scores of the very same rows: "clearly" is the lower end of a
paired interval of the drop, so what is stopped could hardly have been certified.
"""

import math
from typing import Any, Protocol, TypeVar

import msgspec

from autotune.context import RunContext
from autotune.deployment import metrics
from autotune.deployment.metrics import Tried
from autotune.records import job as jobs
from autotune.records.measurement import Launch, Scores
from autotune.records.plan import Deployment
from autotune.records.report import DeployTrial, Failure
from autotune.stats import non_inferiority

T = TypeVar("T")
_STEPS = (16, 4)
_LEAST_ROWS = 50
_DEAR_S = 2.0
_CLEARLY = 0.005  # one-sided error of each look


class Lab(Protocol):
    """What an attempt needs of the lab that it happens in."""

    run: RunContext
    tried: list[Tried]

    def build(self, deployment: Deployment) -> jobs.Result[jobs.Built]: ...

    def measure(
        self, built: jobs.Built, deployment: Deployment, every: int
    ) -> jobs.Result[jobs.Measured]: ...

    def more(
        self, built: jobs.Built, deployment: Deployment, every: int
    ) -> jobs.Result[jobs.Measured]: ...

    def score(self, built: jobs.Built, part: str, every: int) -> jobs.Result[jobs.Scored]: ...


class _FailedError(Exception):
    """A job of the attempt failed."""


class Attempt:
    """One trial in the making; ``results`` are its jobs so far."""

    def __init__(self, lab: Lab, deployment: Deployment, why: str) -> None:
        self._lab = lab
        self._deployment = deployment
        self._why = why
        self._results: list[jobs.Result[Any]] = []

    def run(self, baseline: Tried | None) -> Tried:
        """To its end.  Without a baseline all rows are evaluated at once."""
        lab, deployment = self._lab, self._deployment
        try:
            built = self._done(lab.build(deployment))
            steps = self._looks(baseline)
            launch = self._done(lab.measure(built, deployment, steps[0])).launch
            for every in steps:
                if every != steps[0]:
                    self._done(lab.more(built, deployment, every))
                scored = self._done(lab.score(built, "validation", every))
                stopped = self._clearly_worse(scored.scores, baseline, every)
                if stopped is not None:
                    break
        except _FailedError:
            return Tried(self._spent(state="failed", failure=self._failure()))
        return self._tried(built, launch, scored.scores, stopped)

    def _tried(
        self, built: jobs.Built, launch: Launch, scores: Scores, stopped: str | None
    ) -> Tried:
        fields = metrics.describe(self._lab.run, [launch], self._deployment)
        fields |= {"size_bytes": built.size_bytes, "quality": scores.quality, "stopped": stopped}
        state = "complete" if stopped is None else "pruned"
        return Tried(self._spent(state=state, **fields), built, launch, scores)

    def _looks(self, baseline: Tried | None) -> tuple[int, ...]:
        """Row steps, 1 the last."""
        info = self._lab.run.survey.task
        if baseline is None or baseline.scores is None or baseline.trial.latency_s is None:
            return (1,)
        batch = baseline.trial.deployment.batch_size
        dear = info.validation_rows / batch * baseline.trial.latency_s.p50 > _DEAR_S
        if (
            not dear
            or _scored_s(baseline) < _DEAR_S
            or not baseline.scores.per_sample
            or info.metric == "balanced_accuracy"
        ):
            return (1,)
        return (*(step for step in _STEPS if info.validation_rows // step >= _LEAST_ROWS), 1)

    def _clearly_worse(self, scores: Scores, baseline: Tried | None, every: int) -> str | None:
        if every == 1 or baseline is None or baseline.scores is None:
            return None
        run = self._lab.run
        allowed = metrics.max_drop(run, baseline.scores.quality)
        found = non_inferiority.quality_drop(
            scores,
            _every(baseline.scores, every),
            allowed,
            higher_is_better=run.survey.task.higher_is_better,
            alpha=_CLEARLY,
        )
        if found.lower is None or found.lower <= allowed:
            return None
        return (
            f"quality falls by at least {found.lower:.3g} already on {scores.rows} of "
            f"{run.survey.task.validation_rows} rows"
        )

    def _done(self, result: jobs.Result[T]) -> T:
        self._results.append(result)
        if result.answer is None:
            raise _FailedError
        return result.answer

    def _failure(self) -> Failure:
        return self._results[-1].failure or Failure(kind="error", message="no answer")

    def _spent(self, **fields: object) -> DeployTrial:
        overhead = sum(max(0.0, r.wall_s - r.work_s) for r in self._results)
        wall = sum(r.wall_s for r in self._results)
        build = self._results[0].wall_s
        self._lab.run.overheads.append(overhead)
        if fields["state"] == "failed":
            fields["constraints"] = {"failed": 1.0}
        base: dict[str, object] = {
            "number": len(self._lab.tried),
            "deployment": self._deployment,
            "why": self._why,
            "build_s": build,
            "measure_s": wall - build,
            "wall_s": wall,
            "overhead_s": overhead,
        }
        return msgspec.convert(base | fields, DeployTrial)


def _scored_s(baseline: Tried) -> float:
    """What writing the outputs of all rows took the baseline, at most: each part of them would
    be a new interpreter, which on a GPU takes longer than all rows do.
    """
    launch = baseline.launch
    if launch is None or not launch.work_s:
        return math.inf
    return launch.work_s - launch.load_s - launch.first_call_s - launch.window_s


def part_of(baseline: Tried, tried: Tried) -> Tried:
    """The baseline as it scores on the rows that a candidate was judged on."""
    if tried.scores is None or baseline.scores is None or tried.scores.rows >= baseline.scores.rows:
        return baseline
    every = math.ceil(baseline.scores.rows / tried.scores.rows)
    return baseline._replace(scores=_every(baseline.scores, every))


def _every(scores: Scores, step: int) -> Scores:
    """The scores of each ``step``-th row."""
    values = (scores.per_sample or ())[::step]
    return Scores(quality=math.fsum(values) / len(values), per_sample=values, rows=len(values))


def outputs_of(built: jobs.Built, part: str) -> str:
    """Rows file of an artifact's outputs on one part of the data."""
    return f"outputs/{built.artifact.rpartition('/')[2]}-{part}.npz"
