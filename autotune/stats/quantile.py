"""Exact statements about a quantile of latencies, from the number of calls over a limit.

    launches -> k of n calls over the limit -> k/f of n/f independent ones -> binomial test

"The p-quantile is at most L" is supported or refuted by k, which is binomial whatever the
distribution, as long as calls are independent.  Where they are autocorrelated, the effective
sample size is n / f, with `Tail.inflation` f the larger of

- what the rank correlation of neighbouring calls implies for exceedances of the quantile
  under a Gaussian copula, summed over lags (an AR(1) process is one case), and
- what the correlation of neighbouring exceedances of the limit implies (bursts).

Both stay exactly 1 unless the correlation is significant, so that independent calls keep
the exact test.  The number of calls may be set by a clock: paths in the plane of fast and
slow calls are monotone, so the test stays exact for every stopping line that is fixed
beforehand.  Drifts slower than 128 calls are not seen: several launches are for that.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any

from autotune.records.report import Quantiles

_BURST_P = 1e-3
_SIGNIFICANT = 3.0
_MOST_LAGS = 128
_MAX_CALLS = 1_000_000


class Tail:
    """The calls of several launches, pooled.  ``over`` is 1 - p, the share that may be slower.

    A call that was never answered is infinitely slow.
    """

    def __init__(self, launches: Sequence[Sequence[float]], percentile: float) -> None:
        import numpy as np

        self.runs: list[Any] = [np.asarray(one, dtype=float) for one in launches if len(one)]
        self.over = (100.0 - percentile) / 100.0
        self._calls: Any = np.concatenate(self.runs) if self.runs else np.empty(0)
        pairs = [np.minimum(run[1:], run[:-1]) for run in self.runs]
        self._pairs: Any = np.sort(np.concatenate(pairs)) if pairs else np.empty(0)
        self.ordered: Any = np.sort(self._calls)

    def __len__(self) -> int:
        return len(self.ordered)

    def count_over(self, limit: float) -> int:
        """Calls slower than ``limit``."""
        return _above(self.ordered, limit)

    @cached_property
    def rank_inflation(self) -> float:
        """Calls per independent one at the quantile, by the autocorrelation of their ranks."""
        lengths = [len(run) for run in self.runs]
        return _rank_inflation(self._calls, lengths, self.over) if self.runs else 1.0

    def inflation(self, limit: float) -> float:
        """Calls per independent one, for a statement about ``limit``; 1 or more."""
        return max(self.rank_inflation, self._burst_inflation(limit))

    def _burst_inflation(self, limit: float) -> float:
        """(1 + r) / (1 - r) of the lag-1 correlation r of calls over ``limit``, or 1 unless
        there are more neighbours than chance allows.
        """
        from scipy.special import pdtrc

        pairs, links = _above(self._pairs, limit), len(self._pairs)
        if pairs == 0:
            return 1.0
        rate = self.count_over(limit) / len(self)
        if rate >= 1 or pdtrc(pairs - 1, links * rate * rate) > _BURST_P:
            return 1.0
        correlation = (pairs / links - rate * rate) / (rate * (1 - rate))
        correlation = min(0.95, max(0.0, correlation))
        return (1 + correlation) / (1 - correlation)

    def supported(self, limit: float, alpha: float) -> bool:
        """Whether so few calls are over the limit that it is met, at level ``alpha``."""
        k, n, f = self.count_over(limit), len(self), self.inflation(limit)
        return _supports(k / f, n / f, self.over, alpha)

    def refuted(self, limit: float, alpha: float) -> bool:
        """Whether enough calls exceed the limit to reject it at level ``alpha``."""
        k, n, f = self.count_over(limit), len(self), self.inflation(limit)
        return _refutes(k / f, n / f, self.over, alpha)

    def bounds(self, alpha: float) -> tuple[float | None, float | None]:
        """Order statistics that bound the quantile, each side at ``1 - alpha``; None where
        there are too few calls, or the bound lies among calls that were never answered.
        """
        ordered, n = self.ordered, len(self)
        first = _first(lambda i: self.supported(float(ordered[i]), alpha), n)
        after = _first(lambda i: not self.refuted(float(ordered[i]), alpha), n)
        upper = float(ordered[first]) if first < n else None
        # Just below an order statistic its own ties count as over: that is the test's edge.
        edge = math.nextafter(float(ordered[0]), -math.inf)
        lower = float(ordered[min(after, n - 1)]) if after or self.refuted(edge, alpha) else None
        return finite(lower), finite(upper)

    def more_calls(self, limit: float, alpha: float) -> int | None:
        """Calls still to take before the share of slow calls seen so far decides, or None
        where that share is too close to the allowed one.
        """
        n, k, f = len(self), self.count_over(limit), self.inflation(limit)
        size = n
        while size < _MAX_CALLS:
            size += max(1, size // 20)
            slow = k * size / n / f
            decided = _supports(slow, size / f, self.over, alpha)
            if decided or _refutes(slow, size / f, self.over, alpha):
                return size - n
        return None


def _above(ordered: Any, limit: float) -> int:
    return len(ordered) - int(ordered.searchsorted(limit, side="right"))


def finite(value: float | None) -> float | None:
    """None for what is missing or infinite."""
    return value if value is not None and math.isfinite(value) else None


def point(ordered: Sequence[float], percentile: float) -> float:
    """The smallest value that at least ``percentile`` % of the sorted values do not exceed."""
    rank = math.ceil(len(ordered) * percentile / 100 - 1e-9)
    return float(ordered[min(len(ordered), max(1, rank)) - 1])


def quantiles(launches: Sequence[Sequence[float]], percentile: float) -> Quantiles | None:
    """Pooled quantiles in seconds, with the 95 % interval of the ``percentile`` one; None
    where no call was timed.
    """
    pooled = Tail(launches, percentile)
    if not len(pooled):
        return None
    low, high = pooled.bounds(0.025)
    p50, p95, p99, value = (point(pooled.ordered, p) for p in (50, 95, 99, percentile))
    return Quantiles(
        p50=p50,
        p95=p95,
        p99=p99,
        samples=len(pooled),
        low=low,
        high=high,
        percentile=percentile,
        value=value,
    )


def point_quantile(values: Sequence[float], percentile: float) -> float:
    """The smallest of ``values`` that at least ``percentile`` % of them do not exceed.

    Raises:
        ValueError: there are no values.
    """
    if not len(values):
        raise ValueError("no values: a quantile needs at least one")
    return point(sorted(values), percentile)


def samples_needed(percentile: float, alpha: float = 0.005) -> int:
    """Calls needed to call a limit met when none of them is slower."""
    over = (100.0 - percentile) / 100.0
    return math.ceil(math.log(alpha) / math.log1p(-over))


# -- the binomial test ---------------------------------------------------------------------


def _supports(k: float, n: float, over: float, alpha: float) -> bool:
    return _cdf(math.ceil(k - 1e-9), math.floor(n + 1e-9), over) <= alpha


def _refutes(k: float, n: float, over: float, alpha: float) -> bool:
    return 1 - _cdf(math.floor(k + 1e-9) - 1, math.ceil(n - 1e-9), over) <= alpha


@lru_cache(maxsize=65536)
def _cdf(k: int, n: int, rate: float) -> float:
    """P(Binomial(n, rate) <= k)."""
    from scipy.special import betainc

    if k < 0:
        return 0.0
    return 1.0 if k >= n else float(betainc(n - k, k + 1, 1 - rate))


def _first(holds: Callable[[int], bool], n: int) -> int:
    """The first of 0..n-1 for which ``holds`` (false up to it, true from it on), or n."""
    low, high = 0, n
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


# -- autocorrelation -----------------------------------------------------------------------


def _rank_inflation(calls: Any, lengths: Sequence[int], over: float) -> float:
    """1 + 2 x the summed correlations of "slower than the quantile" over lags.

    Ranks become normal scores, each launch's about its own mean.  Their correlations are
    averaged over doubling blocks of lags (1, 2-3, 4-7, ...), and a block counts where its
    average is significant.  Centring a launch of c calls lowers every correlation by t / c,
    with t the summed correlation: added back, twice.
    """
    import numpy as np

    lags = min(_MOST_LAGS, max(lengths) // 4)
    found = _correlations(calls, lengths, lags) if lags else None
    if found is None or not 0 < over < 1:
        return 1.0
    total, mean_length = len(calls), len(calls) / len(lengths)
    summed = inflation = 1.0
    for _ in range(3):
        unbiased = found + summed * (1 - found) / mean_length
        before, summed, inflation = summed, 1.0, 1.0
        first = 1
        while first <= lags:
            block = unbiased[first : 2 * first]
            if block.mean() > _SIGNIFICANT / math.sqrt(total * len(block)):
                summed += 2 * float(block.sum())
                inflation += 2 * float(_exceedances(np.clip(block, 0.0, 1.0), over).sum())
            first *= 2
        summed = min(max(1.0, summed), mean_length)
        if summed == before:
            break
    return min(max(1.0, inflation), mean_length)


def _correlations(calls: Any, lengths: Sequence[int], lags: int) -> Any:
    """Autocorrelation of the calls' normal scores at lags 0..``lags``, within launches, or
    None where all calls are equal.
    """
    import numpy as np
    from scipy.special import ndtri

    _, which, counts = np.unique(calls, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[which]  # ties share their middle
    scores = ndtri((ranks - 0.5) / len(calls))
    products, terms = np.zeros(lags + 1), np.zeros(lags + 1)
    for run in np.split(scores, np.cumsum(lengths)[:-1]):
        centred = run - run.mean()
        spectrum = np.fft.rfft(centred, 1 << (len(run) + lags).bit_length())
        products += np.fft.irfft(np.abs(spectrum) ** 2)[: lags + 1]
        terms += np.maximum(0, len(run) - np.arange(lags + 1))
    if products[0] <= 1e-9 * len(calls):
        return None
    return products / terms / (products[0] / terms[0])


def _exceedances(correlation: Any, over: float) -> Any:
    """Correlation of "both over the quantile" for normal pairs of this correlation."""
    import numpy as np

    grid, values = _orthant(over)
    return np.interp(correlation, grid, values)


@lru_cache(maxsize=64)
def _orthant(over: float) -> tuple[Any, Any]:
    """Plackett's identity (Biometrika 41, 1954, 351): d P(X > z, Y > z) / d r is the normal
    density of the pair at (z, z); integrated over r = sin t.
    """
    import numpy as np
    from scipy.special import ndtri

    z = float(ndtri(over))
    angle = np.linspace(0.0, math.pi / 2, 513)
    density = np.exp(-z * z / (1 + np.sin(angle)))
    steps = (density[1:] + density[:-1]) / 2 * np.diff(angle)
    joint = np.concatenate([[0.0], np.cumsum(steps)]) / (2 * math.pi)
    return np.sin(angle), joint / (over * (1 - over))
