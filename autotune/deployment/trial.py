"""One candidate of the deploy search: built, measured, and judged on growing parts of *validation*.

    build --> measure, outputs on 1/16 of the rows --> clearly worse? stop : 1/4 --> ... all rows

Parts are taken only where an evaluation of all rows takes seconds.  They are evenly spaced, and
compared with the baseline's scores of the same rows: "clearly" means that the lower bound of the
drop, in a paired interval, is over the allowed drop.
"""

import math
from typing import Any, TypeVar

import msgspec

from autotune.deployment import metrics
from autotune.deployment.artifact_jobs import ArtifactJobs
from autotune.deployment.metrics import Tried
from autotune.records import job as jobs
from autotune.records.measurement import Launch, Scores
from autotune.records.plan import Deployment
from autotune.records.report import DeployTrial, Failure
from autotune.stats import non_inferiority

T = TypeVar("T")
_STEPS = (16, 4)
_LEAST_ROWS = 50
_SLOW_S = 2.0
_CLEARLY = 0.005  # one-sided error of each look


class _FailedError(Exception):
    """A job of the attempt failed."""


class Attempt:
    """The jobs of one trial, and what they add up to."""

    def __init__(
        self, artifacts: ArtifactJobs, number: int, deployment: Deployment, why: str
    ) -> None:
        self._artifacts = artifacts
        self._number = number
        self._deployment = deployment
        self._why = why
        self._results: list[jobs.Result[Any]] = []

    def run(self, baseline: Tried | None) -> Tried:
        """All jobs, up to a failure or a part that is clearly worse.  Without a baseline all rows
        are evaluated at once.
        """
        artifacts, deployment = self._artifacts, self._deployment
        try:
            built = self._done(artifacts.build(deployment))
            steps = self._looks(baseline)
            launch = self._done(artifacts.measure(built, deployment, steps[0])).launch
            for every in steps:
                if every != steps[0]:
                    self._done(artifacts.more_outputs(built, deployment, every))
                scored = self._done(artifacts.score(built, "validation", every))
                stopped = self._clearly_worse(scored.scores, baseline, every)
                if stopped is not None:
                    break
        except _FailedError:
            return Tried(self._spent(state="failed", failure=self._failure()))
        return self._tried(built, launch, scored.scores, stopped)

    def _tried(
        self, built: jobs.Built, launch: Launch, scores: Scores, stopped: str | None
    ) -> Tried:
        fields = metrics.describe(self._artifacts.run, [launch], self._deployment)
        fields |= {"size_bytes": built.size_bytes, "quality": scores.quality, "stopped": stopped}
        state = "complete" if stopped is None else "pruned"
        return Tried(self._spent(state=state, **fields), built, launch, scores)

    def _looks(self, baseline: Tried | None) -> tuple[int, ...]:
        """Every how many rows each look evaluates, 1 the last."""
        info = self._artifacts.run.survey.task
        if baseline is None or baseline.scores is None or baseline.trial.latency_s is None:
            return (1,)
        batch = baseline.trial.deployment.batch_size
        slow = info.validation_rows / batch * baseline.trial.latency_s.p50 > _SLOW_S
        if (
            not slow
            or _scored_s(baseline) < _SLOW_S
            or not baseline.scores.per_sample
            or info.metric == "balanced_accuracy"
        ):
            return (1,)
        return (*(step for step in _STEPS if info.validation_rows // step >= _LEAST_ROWS), 1)

    def _clearly_worse(self, scores: Scores, baseline: Tried | None, every: int) -> str | None:
        if every == 1 or baseline is None or baseline.scores is None:
            return None
        run = self._artifacts.run
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
        self._artifacts.run.overheads.append(overhead)
        if fields["state"] == "failed":
            fields["constraints"] = {"failed": 1.0}
        base: dict[str, object] = {
            "number": self._number,
            "deployment": self._deployment,
            "why": self._why,
            "build_s": build,
            "measure_s": wall - build,
            "wall_s": wall,
            "overhead_s": overhead,
        }
        return msgspec.convert(base | fields, DeployTrial)


def _scored_s(baseline: Tried) -> float:
    """Seconds that the baseline's launch took to write the outputs of all rows, at most.  Each part
    would need an interpreter of its own, whose start on a GPU takes longer than all rows do.
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
