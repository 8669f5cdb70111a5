"""The learning rate over a training, as factors of the recipe's own (docs/algorithms.md).

    constant    1, 1, 1, ...         after a linear warm-up
    cosine      1 ... 0              after a linear warm-up
    one_cycle   1/25 ... 1 ... 0     warm-up included

``step`` counts from 0 to ``steps`` - 1, the horizon; beyond it the last factor is kept.
"""

import math

from autotune.records.plan import Recipe

_FIRST = 1 / 25
_LAST = 1e-4 / 25


def factor(recipe: Recipe, step: int, steps: int) -> float:
    """The factor of ``recipe.lr`` at ``step``."""
    at = min(step, steps - 1)
    if recipe.schedule == "one_cycle":
        return one_cycle(at, steps, recipe.rise)
    rise = round(recipe.rise * steps)
    if at < rise:
        return (at + 1) / rise
    return 1.0 if recipe.schedule == "constant" else cosine(at - rise, steps - rise)


def cosine(step: int, steps: int) -> float:
    """Half a cosine from 1 towards 0, reached after ``steps`` (Loshchilov & Hutter,
    arXiv 1608.03983).
    """
    return (1 + math.cos(math.pi * step / steps)) / 2


def one_cycle(step: int, steps: int, rise: float) -> float:
    """Half a cosine from 1/25 up to 1 over ``rise`` of the steps, and one down to 4e-6 (Smith &
    Topin, arXiv 1708.07120, in the form of torch's ``OneCycleLR``).
    """
    top, end = rise * steps - 1, steps - 1
    if step <= top:
        return _between(_FIRST, 1.0, step / top if top else 1.0)
    return _between(1.0, _LAST, (step - top) / (end - top))


def _between(start: float, end: float, way: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * way)) / 2
