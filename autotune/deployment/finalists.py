"""Which few plans are verified, and in which order: the sequence of the highest expected gain.

    paired drop on validation --normal--> probability to be certified on test, at a given error rate
    plans by the goal --> sequences --> sum of gain x probability --> the best sequence

Verification takes the first of a sequence whose quality passes, so an uncertain plan in front costs
little where a good and safe one comes behind it.  Plans that share a step that trains (whose
quality varies most) pass or fail together to some extent; those with all steps in common entirely.
A drop on few rows is shrunk towards none (normal prior, whose standard deviation is the allowed
drop).  One of the sequence compresses nothing, where there is such a plan: *test* may differ from
*validation* in what compression loses there.
"""

import itertools
import math
from collections.abc import Sequence, Set
from statistics import NormalDist

from autotune.deployment import metrics, ranking
from autotune.deployment.evaluator import DeploymentEvaluator
from autotune.deployment.metrics import Tried

_CONSIDERED = 12
"""Plans, the best by the goal, of which sequences are made."""
_RELATED = 0.2
"""Factor of a plan's probability after one that shares a training step has failed: the same rows
of *validation* made both look better.
"""
_LEAST = 1e-6
_NORMAL = NormalDist()


def chosen(evaluator: DeploymentEvaluator, without: Sequence[Tried] = ()) -> list[Tried]:
    """As many plans as *test* has rows to certify, in the order of verification; the baseline,
    which follows them, is none of them.  Those of ``without`` are left out.
    """
    excluded = {t.trial.number for t in without}
    ranked = [t for t in standing(evaluator) if t.trial.number not in excluded]
    most = len(metrics.quality_alphas(evaluator.run))
    good = [t for t in ranked if t.trial.feasible]
    if not good or not _comparable(evaluator, good[0]):
        return _with_a_lossless_one(ranked[:most], good)
    pool = good[:_CONSIDERED]
    if not any(t.trial.deployment.lossless for t in pool):
        pool += [t for t in good[_CONSIDERED:] if t.trial.deployment.lossless][:1]
    best = _best(evaluator, pool, most)
    named = {t.trial.number for t in best}
    return [*best, *(t for t in ranked if t.trial.number not in named)][:most]


def standing(evaluator: DeploymentEvaluator) -> list[Tried]:
    """Every completed plan but the baseline, those within the limits first, by `cost`."""
    ranked = [t for t in evaluator.ranked() if not evaluator.is_baseline(t.deployment)]
    if not evaluator.goal.by_quality:
        good = [t for t in ranked if t.feasible]
        costs = {t.number: cost(evaluator, evaluator.tried[t.number]) for t in good}
        good.sort(key=lambda t: costs[t.number])
        good = ranking.lossless_first(good, lambda t: costs[t.number])
        ranked = [*good, *(t for t in ranked if not t.feasible)]
    return [evaluator.tried[t.number] for t in ranked]


def cost(evaluator: DeploymentEvaluator, tried: Tried) -> float:
    """What the goal minimises (`Goal.cost`), infinite where it is not known: by the launches of the
    race, or else smoothed by the surrogate.  It does not depend on which baseline a plan has, of
    those at other threads or batch sizes.
    """
    value = evaluator.goal.cost(evaluator.run, tried)
    return value * math.exp(_correction(evaluator, tried)) if value else math.inf


def _correction(evaluator: DeploymentEvaluator, tried: Tried) -> float:
    """Logarithm of the smoothed over the measured value of a trial with one launch."""
    own = evaluator.goal.objective(evaluator.run, tried, evaluator.reference)
    if own is None or tried.smoothed is None:
        return 0.0
    if tried.again or evaluator.goal.by_quality:
        return 0.0
    return tried.smoothed - own


def _with_a_lossless_one(best: list[Tried], good: Sequence[Tried]) -> list[Tried]:
    """Where all of them compress, the last is replaced by the best that does not."""
    lossless = next((t for t in good if t.trial.deployment.lossless), None)
    if (
        len(best) > 1
        and lossless is not None
        and not any(t.trial.deployment.lossless for t in best)
    ):
        best[-1] = lossless
    return best


def _comparable(evaluator: DeploymentEvaluator, first: Tried) -> bool:
    """Whether gains are comparable, and *test* can certify the allowed drop."""
    run = evaluator.run
    scores = evaluator.baseline(first.trial.deployment).scores
    if evaluator.goal.by_quality or scores is None or first.trial.drop is None:
        return False
    alphas = metrics.quality_alphas(run)
    return metrics.certifiable(run, metrics.max_drop(run, scores.quality), alphas[-1])


def _best(evaluator: DeploymentEvaluator, pool: Sequence[Tried], most: int) -> list[Tried]:
    """The sequence of the highest expected gain; of equal ones the first by the goal."""
    alphas = metrics.quality_alphas(evaluator.run)
    gains = [_gain(evaluator, t) for t in pool]
    probabilities = [[probability(evaluator, t, alpha) for alpha in alphas] for t in pool]
    trains = {o.name for o in evaluator.run.survey.options if o.kind == "compress" and o.trains}
    factors = [[_factor_after(failed, other, trains) for other in pool] for failed in pool]
    lossless = {i for i, t in enumerate(pool) if t.trial.deployment.lossless}
    found: tuple[int, ...] = ()
    best = -math.inf
    for places in itertools.combinations(range(len(pool)), min(most, len(pool))):
        if most > 1 and lossless and not lossless & set(places):
            continue
        total, missed = 0.0, 1.0
        for turn, i in enumerate(places):
            passes = probabilities[i][turn] * math.prod(factors[j][i] for j in places[:turn])
            total += missed * passes * gains[i]
            missed *= 1 - passes
        if total > best + _LEAST:
            found, best = places, total
    return [pool[i] for i in found]


def _factor_after(failed: Tried, other: Tried, trains: Set[str]) -> float:
    """Factor of a plan's probability once another has failed."""
    steps, others = failed.trial.deployment.compress, other.trial.deployment.compress
    if steps == others:
        return 0.0
    return _RELATED if trains & {s.name for s in steps} & {s.name for s in others} else 1.0


def _gain(evaluator: DeploymentEvaluator, tried: Tried) -> float:
    """How much better than the best baseline, by the goal, as a logarithm."""
    own = cost(evaluator, tried)
    base = min(cost(evaluator, t) for t in evaluator.baselines.values())
    return max(0.0, math.log(base / own)) if math.isfinite(own) and math.isfinite(base) else 0.0


def probability(evaluator: DeploymentEvaluator, tried: Tried, alpha: float) -> float:
    """That *test* will certify the allowed drop at the error rate ``alpha``, by the drop on
    *validation* and its upper bound, which was computed for as many rows as *test* has.
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
