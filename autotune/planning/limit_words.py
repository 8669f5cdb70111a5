"""Limits on a machine that was not measured: CANNOT, UNLIKELY, UNCLEAR or LIKELY, never MET.

a provable bound breaks the limit     CANNOT, with the arithmetic
else P(the best plan keeps it)        UNLIKELY < 0.1 <= UNCLEAR < 0.9 <= LIKELY
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from autotune import units
from autotune.planning import training_time
from autotune.planning.bounds import Bound
from autotune.planning.training_time import PlanForecast
from autotune.records.outlook import PREDICTED, Judgement, Word

UNLIKELY, LIKELY = 0.1, 0.9

T = TypeVar("T", bound=PlanForecast)
Measure = Callable[[T], tuple[float | None, float]]
"""Maps a plan to the median of the limited quantity and the sd of its logarithm (None: unknown)."""


def word(probability: float) -> Word:
    """What to call a probability."""
    if probability < UNLIKELY:
        return "UNLIKELY"
    return "LIKELY" if probability >= LIKELY else "UNCLEAR"


def probability(limit: float, median: float | None, sd: float) -> float | None:
    """Probability that one plan keeps a limit; None where nothing is predicted."""
    return None if median is None else training_time.probability_below(limit, median, sd)


def best(plans: Sequence[T], limits: Sequence[tuple[float, Measure[T]]]) -> T | None:
    """The plan that keeps all limits with the highest probability (as if independent); the
    first of those alike, so the plans come best first.
    """

    def joint(plan: T) -> float:
        product = 1.0
        for limit, measure in limits:
            product *= probability(limit, *measure(plan)) or 0.0
        return round(product, 3)

    return max(plans, key=joint, default=None)


def judge(
    name: str,
    unit: str,
    limit: float,
    bound: Bound | None,
    predicted: tuple[float | None, float] | None,
) -> Judgement:
    """One limit.

    Args:
        name: of the limit, as the command line calls it.
        unit: SI.
        limit: in that unit.
        bound: the least that any plan needs, where one is known.
        predicted: median and sd of the logarithm for the plan that is judged; None where no
            plan is likely to fit.
    """
    shown = units.show(limit, unit)
    if bound is not None and bound.value > limit:
        why = f"at least {bound.why}, over the limit of {shown}"
        return Judgement(
            name=name,
            unit=unit,
            limit=limit,
            word="CANNOT",
            probability=None,
            bound=bound.value,
            why=why,
        )
    least = bound.value if bound else None
    if predicted is None or predicted[0] is None:
        why = "no plan is likely to fit in the devices' memory"
        if predicted is not None:
            why = "the profile has no power limit, so energy cannot be predicted"
        chance = 0.0 if predicted is None else None
        named: Word = "UNLIKELY" if predicted is None else "UNCLEAR"
    else:
        chance = training_time.probability_below(limit, predicted[0], predicted[1])
        expected = training_time.estimate(predicted[0], predicted[1])
        named = word(chance)
        why = (
            f"{units.around(expected.value, expected.low, expected.high, unit)} expected, "
            f"{PREDICTED}"
        )
    return Judgement(
        name=name, unit=unit, limit=limit, word=named, probability=chance, bound=least, why=why
    )
