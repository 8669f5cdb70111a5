"""Candidates of the deploy search, built and measured (their order: `exploring`).

Each candidate is three jobs: *build* (a file, from the cache where a stage is known),
*measure* (a new interpreter that runs the shipped loader, timing on *validation* inputs and
writing its outputs), *score* (the outputs against the targets).  Its constraints are
``measured / budget - 1``; that of quality uses the upper confidence bound of the drop, so
that what the search calls feasible is what verification can certify.
"""

from dataclasses import dataclass, field
from hashlib import sha256

import msgspec

from autotune.context import RunContext
from autotune.deployment import ranking, search_space
from autotune.deployment.goal import Goal, goal_of
from autotune.deployment.metrics import Tried, constraints, say_certifiable
from autotune.deployment.trial import Attempt, outputs_of, part_of
from autotune.records import job as jobs
from autotune.records.plan import BASELINE, Deployment, Recipe
from autotune.records.report import DeployTrial, Failure
from autotune.search import space
from autotune.search.space import Values
from autotune.stats import non_inferiority, quantile

CONSTRAINTS = ("energy", "latency", "memory", "quality")
_BUILD_TIMEOUT_S = 300.0
_BUILD_SHARE, _BUILD_LEAST_S = 0.4, 20.0
"""Of what the search has left, the most that one build may take: what a first one of its kind costs
is not known before, and a plan that is found so late is worth little beside the others not tried.
"""
_AS_EXPECTED = 1.5
_MEASURE_TIMEOUT_S = 130.0
_SCREEN_S, _AGAIN_S = 0.4, 0.25
_DENSE_S, _DENSE_TIMEOUT_S = 0.2, 120.0


@dataclass
class DeploymentEvaluator:
    """Builds and measures deployments of one set of weights."""

    run: RunContext
    weights: str
    recipe: Recipe
    recovery_epochs: float
    until_s: float | None = None
    """When the search ends, by the bridge's clock, while there is one."""
    _expected_s: float = 0.0
    tried: list[Tried] = field(default_factory=list)
    on_gpu: bool = field(init=False)
    """Whether the deploy baseline computes on the GPU: where there is one that may be used."""
    baselines: dict[tuple[int, int], Tried] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.on_gpu = bool(self.run.profile.gpus) and self.run.effort.device != "cpu"

    @property
    def goal(self) -> Goal:
        return goal_of(self.run.budget, self.run.survey.task.higher_is_better)

    @property
    def batch(self) -> int:
        return self.run.budget.batch or 1

    @property
    def reference(self) -> Tried:
        """The baseline that objectives are relative to: the first measured, whatever the threads
        and batch of a plan, so that all of them compare.
        """
        known = (t for t in self.baselines.values() if t.trial.latency_s is not None)
        return next(known, next(iter(self.baselines.values())))

    def dense(self, threads: int, batch: int) -> Deployment:
        """The deploy baseline at these threads and this batch; a GPU is fed by one thread."""
        if self.on_gpu:
            return Deployment(runtime=BASELINE["cuda"], threads=1, batch_size=batch)
        return Deployment(threads=threads, batch_size=batch)

    def is_baseline(self, deployment: Deployment) -> bool:
        """Whether a deployment is the baseline, at whatever threads and batch."""
        dense = self.dense(deployment.threads, deployment.batch_size)
        changed = any(deployment.runtime_params.values())
        return deployment.lossless and deployment.runtime == dense.runtime and not changed

    # -- one candidate ---------------------------------------------------------------------

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
        """Time it on *validation* and write its outputs on ``every`` so manieth row of it."""
        job = msgspec.structs.replace(
            self._timing(built, deployment, _SCREEN_S, seed=self.run.effort.seed),
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
        """Time it again on other samples of *validation*; no outputs."""
        seed = self.run.effort.seed + 1 + number
        job = self._timing(built, deployment, _AGAIN_S, seed=seed)
        return self.run.bridge.run(job, timeout_s=_MEASURE_TIMEOUT_S)

    def _timing(
        self, built: jobs.Built, deployment: Deployment, time_s: float, *, seed: int
    ) -> jobs.Measure:
        return jobs.Measure(
            artifact=built.artifact,
            rows="data/validation.npz",
            batch_size=deployment.batch_size,
            threads=deployment.threads,
            seed=seed,
            min_calls=quantile.samples_needed(self.run.budget.percentile, 0.005),
            time_s=time_s,
            meter=self.run.meter,
            boards=self.run.survey.device(deployment.runtime) == "cuda",
            load_per_s=self.run.budget.load_per_s,
        )

    def more(
        self, built: jobs.Built, deployment: Deployment, every: int
    ) -> jobs.Result[jobs.Measured]:
        """Its outputs on more rows: no second timing."""
        job = jobs.Measure(
            artifact=built.artifact,
            rows="data/validation.npz",
            batch_size=deployment.batch_size,
            threads=deployment.threads,
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
        job = jobs.Score(
            task=self.run.task(self.recipe),
            part=part,
            outputs=outputs_of(built, part),
            every=every,
            seed=self.run.effort.seed,
        )
        return self.run.bridge.run(job, timeout_s=_MEASURE_TIMEOUT_S + self.evaluation_limit_s())

    def trial(
        self, deployment: Deployment, why: str, *, baseline: bool = False, expected_s: float = 0.0
    ) -> Tried:
        """Build, measure and score one candidate; never raises for what the candidate does.

        ``expected_s`` is what others like it took: its build may take as long and half as much.
        """
        reference = None if baseline else self.baseline(deployment)
        self._expected_s = expected_s
        tried = Attempt(self, deployment, why).run(reference)
        return tried if baseline else self.constrained(tried)

    def evaluation_limit_s(self) -> float:
        """What one evaluation may take: a baseline's own, or the survey's guess, with room."""
        known = [t.trial.measure_s for t in self.baselines.values()]
        return 10 * max([*known, self.run.evaluation_s, 0.0 if known else 30.0])

    def constrained(self, tried: Tried) -> Tried:
        """A trial with its limits' constraints, by its figures."""
        if tried.scores is None:
            return tried
        reference = self.baseline(tried.trial.deployment)
        fields = constraints(self.run, tried, part_of(reference, tried))
        return tried._replace(trial=msgspec.structs.replace(tried.trial, **fields))

    def baseline(self, deployment: Deployment) -> Tried:
        """Dense eager at the deployment's threads and batch, measured once."""
        dense = self.dense(deployment.threads, deployment.batch_size)
        at = (dense.threads, dense.batch_size)
        if at not in self.baselines:
            raw = self.trial(dense, "the deploy baseline", baseline=True)
            self.baselines[at] = raw
            if raw.scores is not None:
                self.run = say_certifiable(self.run, raw.scores)
                self.baselines[at] = self.constrained(raw)
            self.keep(self.baselines[at])
        return self.baselines[at]

    def keep(self, tried: Tried) -> None:
        trial = msgspec.structs.replace(tried.trial, number=len(self.tried))
        self.tried.append(tried._replace(trial=trial))

    def deployment(self, values: Values) -> Deployment:
        return search_space.deployment(
            values,
            self.run.survey.options,
            batch_size=self.batch,
            recovery_epochs=self.recovery_epochs,
            keep_fp32=self.run.effort.keep_fp32,
        )

    # -- choosing --------------------------------------------------------------------------

    def ranked(self) -> tuple[DeployTrial, ...]:
        """All completed trials, best first under the goal."""
        return ranking.order(
            [t.trial for t in self.tried],
            self.goal,
            indistinguishable=self._same_quality,
        )

    def _same_quality(self, one: DeployTrial, other: DeployTrial) -> bool:
        """Whether the worse is within noise of the better (paired, on *validation*)."""
        a, b = self.tried[one.number].scores, self.tried[other.number].scores
        if a is None or b is None:
            return False
        higher = self.run.survey.task.higher_is_better
        if (a.quality > b.quality) == higher:
            a, b = b, a
        found = non_inferiority.quality_drop(a, b, 0.0, higher_is_better=higher)
        return found.lower is None or found.lower <= 0


def _slow(result: jobs.Result[jobs.A], said: str) -> jobs.Result[jobs.A]:
    """A job that was ended for its time, told as slow."""
    failure = result.failure
    if failure is None or failure.kind != "hang":
        return result
    return msgspec.structs.replace(
        result, failure=msgspec.structs.replace(failure, kind="slow", message=said)
    )


class DenseCall:
    """Times a call of the uncompressed model, before anything is searched."""

    def __init__(self, run: RunContext) -> None:
        self._run = run
        usable = [o for o in run.survey.options if o.kind == "runtime" and o.available]
        self.runtime = next((o.name for o in usable if o.takes == "onnx"), BASELINE["cpu"])

    def median_s(self, weights: str, recipe: Recipe) -> tuple[float | None, Failure | None]:
        """Median seconds of a call with the weights of this file, or why there is none."""
        lab = DeploymentEvaluator(self._run, weights, recipe, 0.0)
        deployment = Deployment(runtime=self.runtime, batch_size=lab.batch)
        built = lab.build(deployment)
        if built.answer is None:
            return None, built.failure
        job = jobs.Measure(
            artifact=built.answer.artifact,
            rows="data/validation.npz",
            batch_size=deployment.batch_size,
            threads=deployment.threads,
            seed=self._run.effort.seed,
            time_s=_DENSE_S,
        )
        done = self._run.bridge.run(job, timeout_s=_DENSE_TIMEOUT_S)
        if done.answer is None:
            return None, done.failure
        calls = sorted(done.answer.launch.latency_s)
        return calls[len(calls) // 2], None
