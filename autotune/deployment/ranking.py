"""The order of trials, and their Pareto front.

    trials --feasible--> best by the goal --ties in quality--> lowest latency, then energy
       +--infeasible, by least violation (after all feasible)

Which qualities are not distinguishable is for the caller to say.
"""

import math
from collections.abc import Callable, Sequence

from autotune.deployment import metrics
from autotune.deployment.goal import Goal
from autotune.records.report import DeployTrial
from autotune.report.describe import latency_of

CLOSE = 0.03
"""Differences of one screening launch up to this share are noise."""
Same = Callable[[DeployTrial, DeployTrial], bool]


def violation(trial: DeployTrial) -> float:
    """Sum over budgets of ``measured / budget - 1`` where positive; infinite if not completed."""
    if trial.state != "complete":
        return math.inf
    return math.fsum(max(0.0, value) for value in trial.constraints.values())


def _or_last(value: float | None) -> float:
    return math.inf if value is None else value


def order(
    trials: Sequence[DeployTrial], goal: Goal, *, indistinguishable: Same | None = None
) -> tuple[DeployTrial, ...]:
    """Completed trials, best first: feasible ones by the goal, then the rest by violation.

    Under the goal *quality* the plans that are ``indistinguishable`` from the best
    come first, by latency at the budget's percentile and then energy.  A lossless plan within
    `CLOSE` of the first comes before it: what compression gains there is noise, what it risks
    is not.
    """
    done = [trial for trial in trials if trial.state == "complete"]

    def by_latency(trial: DeployTrial) -> tuple[float, ...]:
        energy, loss = metrics.known_energy(trial), goal.loss(trial)
        return _or_last(latency_of(trial)), _or_last(energy), _or_last(loss), trial.number

    def rank(trial: DeployTrial) -> tuple[float, ...]:
        return _or_last(goal.value(trial)), *by_latency(trial)

    good = sorted((trial for trial in done if trial.feasible), key=rank)
    bad = [trial for trial in done if not trial.feasible]
    bad.sort(key=lambda trial: (violation(trial), *rank(trial)))
    if goal.by_quality and good:
        same = [t for t in good if t is good[0] or _tied(t, good[0], indistinguishable)]
        same.sort(key=by_latency)
        kept = {id(trial) for trial in same}
        good = [*same, *(trial for trial in good if id(trial) not in kept)]
    value = latency_of if goal.by_quality else goal.value
    good = lossless_first(good, lambda trial: _or_last(value(trial)))
    return (*good, *bad)


def lossless_first(
    ranked: list[DeployTrial], value: Callable[[DeployTrial], float]
) -> list[DeployTrial]:
    """The best lossless plan brought to the front where it is close to the first."""
    if not ranked or ranked[0].deployment.lossless:
        return ranked
    limit = value(ranked[0]) + CLOSE * abs(value(ranked[0]))
    near = [t for t in ranked if t.deployment.lossless and value(t) <= limit]
    if not near or math.isinf(limit):
        return ranked
    first = min(near, key=value)
    return [first, *(t for t in ranked if t is not first)]


def _tied(trial: DeployTrial, best: DeployTrial, indistinguishable: Same | None) -> bool:
    if trial.quality is None or best.quality is None:
        return False
    return trial.quality == best.quality or bool(
        indistinguishable and indistinguishable(trial, best)
    )


def pareto(trials: Sequence[DeployTrial], higher_is_better: bool = True) -> tuple[int, ...]:
    """Numbers of the completed trials that none beats in latency (p50), quality and, where
    both were measured, energy; in order of latency.
    """
    known = [t for t in trials if t.state == "complete" and t.latency_s and t.quality is not None]
    front = [t for t in known if not any(_beats(o, t, higher_is_better) for o in known)]
    front.sort(key=lambda t: (t.latency_s.p50 if t.latency_s else math.inf, t.number))
    return tuple(trial.number for trial in front)


def _beats(one: DeployTrial, other: DeployTrial, higher_is_better: bool) -> bool:
    assert one.latency_s
    assert other.latency_s
    assert one.quality is not None
    assert other.quality is not None
    sign = -1 if higher_is_better else 1
    pairs = [
        (one.latency_s.p50, other.latency_s.p50),
        (sign * one.quality, sign * other.quality),
    ]
    if one.energy_j_per_sample is not None and other.energy_j_per_sample is not None:
        pairs.append((one.energy_j_per_sample, other.energy_j_per_sample))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
