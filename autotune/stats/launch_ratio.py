"""One deployment against another, launch by launch, and one machine against itself.

    A B | B A | A B ...   interleaved launches -> paired log-ratios -> Student's interval
    A . . . . . . . . A   the baseline's first and last launch -> drift

A pair of launches shares the machine's state, and the order alternates, so that a linear drift
cancels from the mean or shows in the spread.  A change that begins and ends within one launch is
not seen.
"""

import math
from collections.abc import Sequence
from statistics import stdev
from typing import NamedTuple

from autotune.records.measurement import Interval
from autotune.stats import quantile as tails

_DRIFT = 0.05
_DRIFT_ALPHA = 0.005


class Comparison(NamedTuple):
    """Candidate over baseline; below 1 is faster.  ``low``..``high`` is a 95 % interval
    (0 and infinity where there are fewer than two pairs of launches).
    """

    ratio: float
    low: float
    high: float
    beyond_noise: bool


class Drift(NamedTuple):
    """Median of the baseline's last launch over that of its first.  ``found``: they differ by more
    than 5 % and beyond noise.
    """

    ratio: float
    found: bool


def faster(
    candidate: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]], percentile: float
) -> Comparison:
    """Compare interleaved launches pairwise: the mean log-ratio of their quantiles, with
    Student's 95 % interval.  Launches are paired in order; an empty one drops its pair.
    """
    logs = [
        math.log(tails.point(sorted(mine), percentile) / tails.point(sorted(theirs), percentile))
        for mine, theirs in zip(candidate, baseline, strict=False)
        if len(mine) and len(theirs)
    ]
    if not logs:
        return Comparison(1.0, 0.0, math.inf, False)
    n, mean = len(logs), math.fsum(logs) / len(logs)
    if n < 2:
        return Comparison(math.exp(mean), 0.0, math.inf, False)
    half = student(0.025, n - 1) * stdev(logs) / math.sqrt(n)
    low, high = math.exp(mean - half), math.exp(mean + half)
    return Comparison(math.exp(mean), low, high, high < 1)


def drift(launches: Sequence[Sequence[float]]) -> Drift | None:
    """How the baseline's median moved from its first launch to its last; None under two."""
    runs = [launch for launch in launches if len(launch)]
    if len(runs) < 2:
        return None
    first, last = tails.Tail([runs[0]], 50.0), tails.Tail([runs[-1]], 50.0)
    middles = [tails.point(one.ordered, 50.0) for one in (first, last)]
    if min(middles) <= 0:
        return None
    ratio = middles[1] / middles[0]
    low, high = (last, first) if ratio < 1 else (first, last)
    top, bottom = low.bounds(_DRIFT_ALPHA)[1], high.bounds(_DRIFT_ALPHA)[0]
    apart = top is not None and bottom is not None and top < bottom
    return Drift(ratio, apart and abs(math.log(ratio)) > math.log1p(_DRIFT))


def mean_interval(values: Sequence[float], alpha: float = 0.05) -> Interval | None:
    """Mean over launches, which is no less than 0, with its two-sided ``1 - alpha`` interval; None
    under two launches.
    """
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    half = student(alpha / 2, n - 1) * stdev(values) / math.sqrt(n)
    return Interval(value=mean, low=max(0.0, mean - half), high=mean + half)


def next_interval(values: Sequence[float], alpha: float = 0.05) -> Interval | None:
    """The largest value, and the two-sided ``1 - alpha`` range of one further launch's; None
    under two launches.
    """
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    half = student(alpha / 2, n - 1) * stdev(values) * math.sqrt(1 + 1 / n)
    low, high = min(*values, mean - half), max(*values, mean + half)
    return Interval(value=max(values), low=max(0.0, low), high=high)


def student(alpha: float, degrees: int) -> float:
    """The ``1 - alpha`` quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 1 - alpha))
