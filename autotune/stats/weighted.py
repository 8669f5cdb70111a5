"""Counts of which each weighs something: rows that changed, where a class is rare and so heavy.

    weights of the rows that are worse, and better --> upper bound of what is lost in all

Balanced accuracy is a mean of such weights.  A bootstrap, or Student's t, takes the rows seen for
all there are: where few heavy rows changed, or none, it covers the truth in 70 to 90 % of cases for
95 claimed.  The bounds here cover it in more than claimed.  Does not know rows, nor models.
"""

import math


def may_be(values: tuple[float, ...]) -> bool:
    """Whether scores [n] may be 0 or their class's weight: ``k`` classes of different sizes, and so
    weights, have ``k (k + 1) / 2`` rows at least.
    """
    return min(values) >= 0 and len({*values} - {0.0}) <= math.sqrt(2 * len(values))


def excess(
    more: tuple[float, ...], less: tuple[float, ...], heaviest: float, alpha: float
) -> float:
    """Upper ``1 - alpha`` bound of the expected sum of ``more`` over that of ``less``, each a
    weight for each count, from the bounds of both (Zou and Donner, Statistics in Medicine 27, 2008,
    1693).  ``heaviest`` is the largest weight that a count could have had.
    """
    one, other = math.fsum(more), math.fsum(less)
    above = upper(more, heaviest, alpha) - one
    return one - other + math.hypot(above, other - lower(less, alpha))


def upper(weights: tuple[float, ...], heaviest: float, alpha: float) -> float:
    """Upper ``1 - alpha`` bound of the expected sum of weighted counts: the gamma bound of Fay and
    Feuer (Statistics in Medicine 16, 1997, 791), exact for Poisson counts of one weight.
    """
    return _quantile((*weights, heaviest), 1 - alpha)


def lower(weights: tuple[float, ...], alpha: float) -> float:
    """The lower one (`upper`)."""
    return _quantile(weights, alpha)


def _quantile(weights: tuple[float, ...], level: float) -> float:
    """Of the gamma distribution with the mean and variance of these counts."""
    from scipy.special import gammaincinv

    mean, variance = math.fsum(weights), math.fsum(w * w for w in weights)
    return variance / mean * float(gammaincinv(mean**2 / variance, level)) if variance else 0.0
