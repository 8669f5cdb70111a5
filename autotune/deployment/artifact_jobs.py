"""The jobs of a deployment: *build*, *measure* and *score*, each made in one place.

deployment --Build--> artifact (from the cache where a stage is known)
artifact --Measure--> launch: a new interpreter that runs the shipped loader, times calls on
                      rows of *validation* and writes outputs
outputs --Score--> quality against the targets
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from statistics import median_high
from typing import Any, TypeVar

import msgspec

from autotune.context import RunContext
from autotune.deployment.metrics import Tried
from autotune.records import job as jobs
from autotune.records.plan import BASELINE, Deployment, Recipe
from autotune.records.report import Failure
from autotune.search import space
from autotune.stats import quantile

T = TypeVar("T")
_BUILD_TIMEOUT_S = 300.0
_BUILD_SHARE, _BUILD_LEAST_S = 0.4, 20.0
"""Of the time left for the search, the most that one build may take: what the first of its kind
costs is not known beforehand, and a slow build displaces other trials.
"""
_AS_EXPECTED = 1.5
"""Times the expected seconds of a trial, that its build may take in any case."""
_MEASURE_TIMEOUT_S = 130.0
_SCREEN_S, _AGAIN_S = 0.4, 0.25
"""Seconds of timing in a trial's own launch, and in each launch of a race."""
_DENSE_S, _DENSE_TIMEOUT_S = 0.2, 120.0


def outputs_of(built: jobs.Built, part: str) -> str:
    """Rows file of an artifact's outputs on one part of the data."""
    return f"outputs/{built.artifact.rpartition('/')[2]}-{part}.npz"


def measure_job(
    run: RunContext, built: jobs.Built, deployment: Deployment, *, metered: bool = True, **more: Any
) -> jobs.Measure:
    """A launch of an artifact on *validation*: under the budget's load and with energy counters
    where ``metered``; ``more`` are fields of the job.
    """
    fields: dict[str, Any] = {
        "artifact": built.artifact,
        "rows": "data/validation.npz",
        "batch_size": deployment.batch_size,
        "threads": deployment.threads,
    }
    if metered:
        fields["meter"] = run.meter
        fields["boards"] = run.survey.device(deployment.runtime) == "cuda"
        fields["load_per_s"] = run.budget.load_per_s
    return jobs.Measure(**fields | more)


def interleaved(
    sides: Sequence[T], rounds: Iterable[int], launch: Callable[[T, int], str | None]
) -> str | None:
    """Launch every side once a round, each round beginning with another side, so that a drift of
    the machine is in all of them.

        round 0: A B    round 1: B A    round 2: A B

    Returns:
        Why a launch failed, which ends the rounds, or None.
    """
    for number in rounds:
        first = number % len(sides)
        for side in (*sides[first:], *sides[:first]):
            failure = launch(side, number)
            if failure is not None:
                return failure
    return None


@dataclass
class ArtifactJobs:
    """Builds, measures and scores deployments of one set of weights, each within a time limit."""

    run: RunContext
    weights: str
    recipe: Recipe
    until_s: float | None = field(default=None, init=False)
    """When the search ends, by the bridge's clock, while there is one."""
    baselines: dict[tuple[int, int], Tried] = field(default_factory=dict, init=False)
    """The deploy baseline by (threads, batch size), as far as it was measured."""
    _expected_s: float = field(default=0.0, init=False)

    def build(self, deployment: Deployment) -> jobs.Result[jobs.Built]:
        name = sha256(space.canonical(deployment).encode()).hexdigest()[:12]
        job = jobs.Build(
            task=self.run.task(self.recipe),
            weights=self.weights,
            compress=deployment.compress,
            runtime=deployment.runtime,
            runtime_params=deployment.runtime_params,
            threads=deployment.threads,
            batch_size=deployment.batch_size,
            seed=self.run.effort.seed,
            recipe=self.recipe,
            recovery_epochs=deployment.recovery_epochs,
            device=self.run.effort.device,
            out=f"builds/{name}",
        )
        limit_s = self._build_limit_s()
        result = self.run.bridge.run(job, timeout_s=limit_s)
        if limit_s >= _BUILD_TIMEOUT_S:
            return result
        share = f", {_BUILD_SHARE:.0%} of what was left" if limit_s > _BUILD_LEAST_S else ""
        return _slow(result, f"the build took more than {limit_s:.0f} s{share}")

    def _build_limit_s(self) -> float:
        if self.until_s is None or not self.baselines:
            return _BUILD_TIMEOUT_S
        share_s = _BUILD_SHARE * (self.until_s - self.run.bridge.now())
        least_s = max(_BUILD_LEAST_S, _AS_EXPECTED * self._expected_s)
        return min(_BUILD_TIMEOUT_S, max(least_s, share_s))

    def measure(
        self, built: jobs.Built, deployment: Deployment, every: int = 1
    ) -> jobs.Result[jobs.Measured]:
        """Time calls, and write the outputs of every ``every``-th row of *validation*."""
        job = self._timed(
            built,
            deployment,
            seed=self.run.effort.seed,
            time_s=_SCREEN_S,
            score_rows="data/validation.npz",
            every=every,
            outputs=outputs_of(built, "validation"),
        )
        usual_s = 120.0 + 20 * _SCREEN_S + self.evaluation_limit_s()
        runtime = self.run.survey.option("runtime", deployment.runtime)
        if runtime.compiles != "first_call" or self.until_s is None:
            return self.run.bridge.run(job, timeout_s=usual_s)
        # its compiler runs in the first call, so that a build's limit holds for it
        limit_s = min(usual_s, self._build_limit_s() + self.evaluation_limit_s() / 5)
        result = self.run.bridge.run(job, timeout_s=limit_s)
        return _slow(result, f"compiling and measuring took more than {limit_s:.0f} s")

    def once_more(
        self, built: jobs.Built, deployment: Deployment, number: int
    ) -> jobs.Result[jobs.Measured]:
        """Time calls again, on rows of *validation* in another order; no outputs."""
        seed = self.run.effort.seed + 1 + number
        job = self._timed(built, deployment, seed=seed, time_s=_AGAIN_S)
        return self.run.bridge.run(job, timeout_s=_MEASURE_TIMEOUT_S)

    def _timed(self, built: jobs.Built, deployment: Deployment, **more: Any) -> jobs.Measure:
        calls = quantile.samples_needed(self.run.budget.percentile, 0.005)
        return measure_job(self.run, built, deployment, min_calls=calls, **more)

    def more_outputs(
        self, built: jobs.Built, deployment: Deployment, every: int
    ) -> jobs.Result[jobs.Measured]:
        """The outputs of more rows; nothing is timed."""
        job = measure_job(
            self.run,
            built,
            deployment,
            metered=False,
            min_calls=1,
            max_calls=1,
            time_s=0.0,
            warmup_s=0.0,
            score_rows="data/validation.npz",
            every=every,
            outputs=outputs_of(built, "validation"),
        )
        return self.run.bridge.run(job, timeout_s=_MEASURE_TIMEOUT_S + self.evaluation_limit_s())

    def score(self, built: jobs.Built, part: str, every: int = 1) -> jobs.Result[jobs.Scored]:
        """The quality of the outputs on every ``every``-th row of a part of the data."""
        job = jobs.Score(
            task=self.run.task(self.recipe),
            part=part,
            outputs=outputs_of(built, part),
            every=every,
            seed=self.run.effort.seed,
        )
        return self.run.bridge.run(job, timeout_s=_MEASURE_TIMEOUT_S + self.evaluation_limit_s())

    def evaluation_limit_s(self) -> float:
        """The most that one evaluation may take: ten times the baseline's, or the survey's."""
        known = [t.trial.measure_s for t in self.baselines.values()]
        return 10 * max([*known, self.run.evaluation_s, 0.0 if known else 30.0])


def _slow(result: jobs.Result[jobs.A], message: str) -> jobs.Result[jobs.A]:
    """A job that hit its time limit, with the failure named slow."""
    failure = result.failure
    if failure is None or failure.kind != "hang":
        return result
    slow = msgspec.structs.replace(failure, kind="slow", message=message)
    return msgspec.structs.replace(result, failure=slow)


class DenseCall:
    """Times a call of the uncompressed model, before anything is searched."""

    def __init__(self, run: RunContext) -> None:
        self._run = run
        usable = [o for o in run.survey.options if o.kind == "runtime" and o.available]
        self.runtime = next((o.name for o in usable if o.takes == "onnx"), BASELINE["cpu"])

    def median_s(self, weights: str, recipe: Recipe) -> tuple[float | None, Failure | None]:
        """Median seconds of a call with the weights of this file, or why there is none."""
        deployment = Deployment(runtime=self.runtime, batch_size=self._run.budget.batch or 1)
        built = ArtifactJobs(self._run, weights, recipe).build(deployment)
        if built.answer is None:
            return None, built.failure
        job = measure_job(
            self._run,
            built.answer,
            deployment,
            metered=False,
            seed=self._run.effort.seed,
            time_s=_DENSE_S,
        )
        done = self._run.bridge.run(job, timeout_s=_DENSE_TIMEOUT_S)
        if done.answer is None:
            return None, done.failure
        return median_high(done.answer.launch.latency_s), None
