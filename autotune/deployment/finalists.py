"""Which few plans are verified, and in which order: those of the best expected gain.

    paired drop on validation --normal--> chance to be certified on test, at a finalist's error rate
    plans by the goal --> sequences, the best first --> sum of gain x chance --> the best sequence

Verification takes the first of a sequence whose quality passes, so a bold plan in front costs
little where something good and sure comes behind it.  Plans that share a step that trains (their
quality is what varies) pass or fail together to some extent; those with all steps in common
entirely.  A drop that was seen on few rows says little: it is shrunk towards none (normal prior,
the allowed drop its deviation).  One of the sequence compresses nothing, where there is such a
plan: *test* may differ from *validation* in what compression loses there.
"""

import itertools
import math
from collections.abc import Sequence, Set
from statistics import NormalDist

from autotune.deployment import metrics, ranking
from autotune.deployment.evaluator import DeploymentEvaluator
from autotune.deployment.metrics import Tried

_CONSIDERED = 12
"""Plans, by the goal."""
_KIN = 0.2
"""What the chance of a plan is multiplied with after one that shares a training step has failed:
the same rows of *validation* flattered both.
"""
_LEAST = 1e-6
_NORMAL = NormalDist()


def chosen(evaluator: DeploymentEvaluator, without: Sequence[Tried] = ()) -> list[Tried]:
    """Up to as many plans as *test* can bear, in the order of verification; the baseline, which
    stands ready behind them, is none of them.  Some may be left out of consideration.
    """
    gone = {t.trial.number for t in without}
    ranked = [t for t in standing(evaluator) if t.trial.number not in gone]
    most = len(metrics.quality_alphas(evaluator.run))
    good = [t for t in ranked if t.trial.feasible]
    if not good or not _weighable(evaluator, good[0]):
        return _with_a_safe_one(ranked[:most], good)
    pool = good[:_CONSIDERED]
    if not any(t.trial.deployment.lossless for t in pool):
        pool += [t for t in good[_CONSIDERED:] if t.trial.deployment.lossless][:1]
    best = _best(evaluator, pool, most)
    named = {t.trial.number for t in best}
    return [*best, *(t for t in ranked if t.trial.number not in named)][:most]


def standing(evaluator: DeploymentEvaluator) -> list[Tried]:
    """Every completed plan but the baseline, those within the limits first, by the goal: by their
    launches in turn, or by what all trials say of one that had none.
    """
    ranked = [t for t in evaluator.ranked() if not evaluator.is_baseline(t.deployment)]
    if not evaluator.goal.by_quality:
        good = [t for t in ranked if t.feasible]
        costs = {t.number: cost(evaluator, evaluator.tried[t.number]) for t in good}
        good.sort(key=lambda t: costs[t.number])
        good = ranking.lossless_first(good, lambda t: costs[t.number])
        ranked = [*good, *(t for t in ranked if not t.feasible)]
    return [evaluator.tried[t.number] for t in ranked]


def cost(evaluator: DeploymentEvaluator, tried: Tried) -> float:
    """What the goal minimises, as `standing` has it: seconds (of quality too), joules or bytes, or
    seconds a sample; infinite where it is not known.  It does not depend on which baseline a plan
    has, of those at other threads or batches.
    """
    value = evaluator.goal.cost(evaluator.run, tried)
    return value * math.exp(_luck(evaluator, tried)) if value else math.inf


def _luck(evaluator: DeploymentEvaluator, tried: Tried) -> float:
    """What its one launch is taken to have been faster by, as a logarithm."""
    own = evaluator.goal.objective(evaluator.run, tried, evaluator.reference)
    if own is None or tried.steady is None:
        return 0.0
    if tried.again or evaluator.goal.by_quality:
        return 0.0
    return tried.steady - own


def _with_a_safe_one(best: list[Tried], good: Sequence[Tried]) -> list[Tried]:
    """Where all of them compress, the last gives its place to the best that does not: whose
    quality cannot have been luck on *validation*.
    """
    safe = next((t for t in good if t.trial.deployment.lossless), None)
    if len(best) > 1 and safe is not None and not any(t.trial.deployment.lossless for t in best):
        best[-1] = safe
    return best


def _weighable(evaluator: DeploymentEvaluator, first: Tried) -> bool:
    """Whether gains are comparable, and *test* can certify the allowed drop."""
    run = evaluator.run
    scores = evaluator.baseline(first.trial.deployment).scores
    if evaluator.goal.by_quality or scores is None or first.trial.drop is None:
        return False
    alphas = metrics.quality_alphas(run)
    return metrics.certifiable(run, metrics.max_drop(run, scores.quality), alphas[-1])


def _best(evaluator: DeploymentEvaluator, pool: Sequence[Tried], most: int) -> list[Tried]:
    """The sequence of the highest expected gain; of those that are alike the first by the goal."""
    alphas = metrics.quality_alphas(evaluator.run)
    gains = [_gain(evaluator, t) for t in pool]
    chances = [[chance(evaluator, t, alpha) for alpha in alphas] for t in pool]
    trains = {o.name for o in evaluator.run.survey.options if o.kind == "compress" and o.trains}
    left = [[_left(failed, other, trains) for other in pool] for failed in pool]
    safe = {i for i, t in enumerate(pool) if t.trial.deployment.lossless}
    found: tuple[int, ...] = ()
    best = -math.inf
    for places in itertools.combinations(range(len(pool)), min(most, len(pool))):
        if most > 1 and safe and not safe & set(places):
            continue
        total, missed = 0.0, 1.0
        for turn, i in enumerate(places):
            passes = chances[i][turn] * math.prod(left[j][i] for j in places[:turn])
            total += missed * passes * gains[i]
            missed *= 1 - passes
        if total > best + _LEAST:
            found, best = places, total
    return [pool[i] for i in found]


def _left(failed: Tried, other: Tried, trains: Set[str]) -> float:
    """What is left of a plan's chance once another has failed."""
    steps, others = failed.trial.deployment.compress, other.trial.deployment.compress
    if steps == others:
        return 0.0
    return _KIN if trains & {s.name for s in steps} & {s.name for s in others} else 1.0


def _gain(evaluator: DeploymentEvaluator, tried: Tried) -> float:
    """How much better than the best baseline, by the goal, as a logarithm."""
    own, base = (
        cost(evaluator, tried),
        min(cost(evaluator, t) for t in evaluator.baselines.values()),
    )
    return max(0.0, math.log(base / own)) if math.isfinite(own) and math.isfinite(base) else 0.0


def chance(evaluator: DeploymentEvaluator, tried: Tried, alpha: float) -> float:
    """That *test* will certify the allowed drop at this error rate, by what *validation* has shown:
    the drop and the upper bound that was computed for as many rows as *test* has.
    """
    run, trial = evaluator.run, tried.trial
    scores = evaluator.baseline(trial.deployment).scores
    if scores is None or trial.drop is None or trial.drop_upper is None:
        return 1.0
    allowed = metrics.max_drop(run, scores.quality)
    z = _NORMAL.inv_cdf(1 - metrics.quality_alphas(run)[0])
    on_test = max(trial.drop_upper - trial.drop, _LEAST) / z
    rows, task = scores.rows, run.survey.task
    seen = on_test**2 * task.test_rows / max(1, rows)
    shrunk = allowed**2 / (allowed**2 + seen)
    deviation = math.sqrt(shrunk * seen + on_test**2)
    needed = allowed - _NORMAL.inv_cdf(1 - alpha) * on_test
    return _NORMAL.cdf((needed - shrunk * trial.drop) / deviation)
