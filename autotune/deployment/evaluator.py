"""Trials of the deploy search: the baselines, candidates with their constraints, and their order.

A trial's constraints are ``measured / budget - 1``; that of quality uses the upper confidence bound
of the drop, so that what the search calls feasible is what verification can certify.  Which
deployments are tried, and in which order, is `search`.
"""

from dataclasses import dataclass, field

import msgspec

from autotune.deployment import ranking, search_space
from autotune.deployment.artifact_jobs import ArtifactJobs
from autotune.deployment.goal import Goal, goal_of
from autotune.deployment.metrics import Tried, constraints, say_certifiable
from autotune.deployment.trial import Attempt, part_of
from autotune.records.plan import BASELINE, Deployment
from autotune.records.report import DeployTrial
from autotune.search.space import Values
from autotune.stats import non_inferiority

CONSTRAINTS = ("energy", "latency", "memory", "quality")


@dataclass
class DeploymentEvaluator(ArtifactJobs):
    """Tries deployments of one set of weights, and keeps what came of them."""

    recovery_epochs: float
    """Of training after a compression step that trains."""
    tried: list[Tried] = field(default_factory=list, init=False)
    on_gpu: bool = field(init=False)
    """Whether the deploy baseline computes on the GPU: where there is one that may be used."""

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

    def trial(
        self, deployment: Deployment, why: str, *, baseline: bool = False, expected_s: float = 0.0
    ) -> Tried:
        """Build, measure and score one candidate; never raises for what the candidate does.

        ``expected_s`` is what others like it took: its build may take one and a half times that.
        """
        reference = None if baseline else self.baseline(deployment)
        self._expected_s = expected_s
        tried = Attempt(self, len(self.tried), deployment, why).run(reference)
        return tried if baseline else self.constrained(tried)

    def constrained(self, tried: Tried) -> Tried:
        """The trial with its constraints, drop and upper bound of the drop."""
        if tried.scores is None:
            return tried
        reference = self.baseline(tried.trial.deployment)
        fields = constraints(self.run, tried, part_of(reference, tried))
        return tried._replace(trial=msgspec.structs.replace(tried.trial, **fields))

    def baseline(self, deployment: Deployment) -> Tried:
        """The deploy baseline at the deployment's threads and batch size, measured once."""
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
        trials = [t.trial for t in self.tried]
        return ranking.order(trials, self.goal, indistinguishable=self._same_quality)

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
