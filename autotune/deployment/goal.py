"""What a deployment is chosen for.  Everything that depends on the goal stands here.

    trial --value--> order of the plans          launches --cost--> order of the finalists
    trial, baseline --objective--> the sampler   launches, baseline's --improves--> verification

The lowest latency is the default; every other goal overrides what differs.  Limits
(`metrics.constraints`) hold under all of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from autotune.context import RunContext
from autotune.deployment import metrics
from autotune.deployment.metrics import Tried
from autotune.records.budget import Budget, GoalName
from autotune.records.measurement import Launch
from autotune.records.report import DeployTrial
from autotune.report.describe import latency_of
from autotune.stats.launch_ratio import Comparison

_LATENCY_WEIGHT = 0.1
"""Under the goal *quality*: of a log-ratio of latencies, beside a drop in units of the allowed."""


@dataclass(frozen=True)
class Goal:
    """The lowest latency at the budget's percentile."""

    higher_is_better: bool = True
    """Of the quality."""

    reason: ClassVar[str] = "it has the lowest latency within the limits"
    by_quality: ClassVar[bool] = False
    """Quality orders the plans, and latency those that are not distinguishable from the best."""
    searches_batch: ClassVar[bool] = False
    """Single calls do not matter, so that the batch size is searched."""
    noisy: ClassVar[bool] = True
    """Launches of one artifact differ in it."""

    def value(self, trial: DeployTrial) -> float | None:
        """What is minimised: seconds, joules, seconds a sample, bytes, or minus the quality; None
        where it was not measured.
        """
        return latency_of(trial)

    def loss(self, trial: DeployTrial) -> float | None:
        """The quality, as a number to minimise."""
        if trial.quality is None:
            return None
        return -trial.quality if self.higher_is_better else trial.quality

    def cost(self, run: RunContext, tried: Tried) -> float | None:
        """`value` by the launches themselves: under an open-loop load of the response times."""
        return metrics.at_percentile(run, tried)

    def objective(self, run: RunContext, tried: Tried, reference: Tried) -> float | None:
        """What the sampler minimises; None for a trial that failed or was skipped."""
        latency, base = metrics.at_percentile(run, tried), metrics.at_percentile(run, reference)
        if tried.trial.state != "complete" or not latency or not base:
            return None
        return math.log(latency / base)

    def predicted(self, call_s: float, batch: int, reference: Tried) -> float | None:
        """The `objective` of an uncompressed plan whose call is predicted to take ``call_s``; None
        where the goal does not depend on that.
        """
        known = reference.trial.latency_s
        return None if known is None else math.log(call_s / known.p50)

    def improves(
        self, own: Sequence[Launch], baseline: Sequence[Launch], batch: int, time: Comparison
    ) -> bool:
        """Whether a plan beats the baseline beyond noise; ``time`` compares their latencies."""
        return time.beyond_noise and time.ratio < 1

    def prefers_faster(self, quality_gain: float | None) -> bool:
        """Whether the faster of two plans that keep every limit is the better one, where it gains
        so much of quality.
        """
        return True


class Quality(Goal):
    """The best quality; of the plans that are not distinguishable from it the fastest."""

    reason = (
        "of the plans within the limits whose quality is not distinguishable from the best, it "
        "has the lowest latency"
    )
    by_quality = True

    def value(self, trial: DeployTrial) -> float | None:
        return self.loss(trial)

    def objective(self, run: RunContext, tried: Tried, reference: Tried) -> float | None:
        log_latency, drop = super().objective(run, tried, reference), tried.trial.drop
        if log_latency is None or drop is None or reference.scores is None:
            return log_latency
        scale = metrics.max_drop(run, reference.scores.quality) or 1.0
        return drop / scale + _LATENCY_WEIGHT * log_latency

    def predicted(self, call_s: float, batch: int, reference: Tried) -> float | None:
        log_latency = super().predicted(call_s, batch, reference)
        return None if log_latency is None else _LATENCY_WEIGHT * log_latency

    def prefers_faster(self, quality_gain: float | None) -> bool:
        return quality_gain is not None and quality_gain >= 0


class _Figure(Goal):
    """A figure of a trial other than its latency, which stands in where it was not measured."""

    def cost(self, run: RunContext, tried: Tried) -> float | None:
        return self.value(tried.trial)

    def objective(self, run: RunContext, tried: Tried, reference: Tried) -> float | None:
        log_latency, value = super().objective(run, tried, reference), self.value(tried.trial)
        return math.log(value) if value and log_latency is not None else log_latency


class Energy(_Figure):
    """The fewest joules a sample: measured, else modelled."""

    reason = "it needs the least energy within the limits"
    searches_batch = True

    def value(self, trial: DeployTrial) -> float | None:
        return metrics.known_energy(trial)

    def objective(self, run: RunContext, tried: Tried, reference: Tried) -> float | None:
        log_latency = Goal.objective(self, run, tried, reference)
        own, base = self.value(tried.trial), self.value(reference.trial)
        return math.log(own / base) if own and base and log_latency is not None else log_latency

    def improves(
        self, own: Sequence[Launch], baseline: Sequence[Launch], batch: int, time: Comparison
    ) -> bool:
        own_j = [e for e in metrics.energies(own, batch) if e is not None]
        base_j = [e for e in metrics.energies(baseline, batch) if e is not None]
        if own_j and base_j:
            return max(own_j) < min(base_j)
        return super().improves(own, baseline, batch, time)

    def prefers_faster(self, quality_gain: float | None) -> bool:
        return False


class Throughput(_Figure):
    """The most samples a second, one call after another."""

    reason = "it has the highest throughput within the limits"
    searches_batch = True

    def value(self, trial: DeployTrial) -> float | None:
        return 1 / trial.throughput_per_s if trial.throughput_per_s else None

    def predicted(self, call_s: float, batch: int, reference: Tried) -> float | None:
        return math.log(call_s / batch) if reference.trial.latency_s is not None else None


class Memory(_Figure):
    """The lowest peak memory of the serving process."""

    reason = "it needs the least memory within the limits"
    noisy = False

    def value(self, trial: DeployTrial) -> float | None:
        return trial.memory_bytes

    def predicted(self, call_s: float, batch: int, reference: Tried) -> float | None:
        return None

    def improves(
        self, own: Sequence[Launch], baseline: Sequence[Launch], batch: int, time: Comparison
    ) -> bool:
        return max(x.peak_memory_bytes for x in own) < min(x.peak_memory_bytes for x in baseline)

    def prefers_faster(self, quality_gain: float | None) -> bool:
        return False


GOALS: dict[GoalName, type[Goal]] = {
    "latency": Goal,
    "quality": Quality,
    "energy": Energy,
    "throughput": Throughput,
    "memory": Memory,
}


def goal_of(budget: Budget, higher_is_better: bool) -> Goal:
    """The goal that a budget asks for, or implies."""
    return GOALS[budget.resolved_goal()](higher_is_better)
