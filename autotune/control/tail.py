"""Exact statements about a quantile of latencies, from the number of calls over a limit.

"The p-quantile is at most L" is supported or refuted by k, the calls over L of n, which is
binomial whatever the distribution.  Where calls over L follow each other far more often
than by chance (bursts), they are not independent: then n, and k with it, shrink to an
effective number.  Does not know drifts slower than a launch; several launches are for that.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

_BURST_P = 1e-3
_MAX_CALLS = 1_000_000


class Tail:
    """The calls of several launches, pooled.  ``over`` is 1 - p, the share that may be slower."""

    def __init__(self, launches: Sequence[Sequence[float]], percentile: float) -> None:
        import numpy as np

        runs = [np.asarray(launch, dtype=float) for launch in launches if len(launch)]
        self.over = (100.0 - percentile) / 100.0
        self._calls: Any = np.concatenate(runs) if runs else np.empty(0)
        number = np.repeat(np.arange(len(runs)), [len(run) for run in runs])
        self._linked: Any = number[1:] == number[:-1]
        self.ordered: Any = np.sort(self._calls)

    def __len__(self) -> int:
        return len(self.ordered)

    def count_over(self, limit: float) -> int:
        """Calls slower than ``limit``."""
        return int((self._calls > limit).sum())

    def inflation(self, limit: float) -> float:
        """Calls over ``limit`` that are worth one independent call: (1 + r) / (1 - r) of
        their lag-1 correlation r, or 1 unless there are more neighbours than chance allows.
        """
        from scipy.special import pdtrc

        slow = self._calls > limit
        rate, links = float(slow.mean()), int(self._linked.sum())
        pairs = int((slow[1:] & slow[:-1] & self._linked).sum())
        if pairs == 0 or rate >= 1 or pdtrc(pairs - 1, links * rate * rate) > _BURST_P:
            return 1.0
        correlation = (pairs / links - rate * rate) / (rate * (1 - rate))
        correlation = min(0.95, max(0.0, correlation))
        return (1 + correlation) / (1 - correlation)

    def supported(self, limit: float, alpha: float) -> bool:
        """So few calls are over the limit that it is met."""
        k, n, worth = self.count_over(limit), len(self), self.inflation(limit)
        return _supports(k / worth, n / worth, self.over, alpha)

    def refuted(self, limit: float, alpha: float) -> bool:
        """So many calls are over the limit that it is broken."""
        k, n, worth = self.count_over(limit), len(self), self.inflation(limit)
        return _refutes(k / worth, n / worth, self.over, alpha)

    def bounds(self, alpha: float) -> tuple[float | None, float | None]:
        """Order statistics that bound the quantile, each side at ``1 - alpha``; None where
        there are too few calls.
        """
        ordered, n = self.ordered, len(self)
        first = _first(lambda i: self.supported(float(ordered[i]), alpha), n)
        after = _first(lambda i: not self.refuted(float(ordered[i]), alpha), n)
        upper = float(ordered[first]) if first < n else None
        # Just below an order statistic its own ties count as over: that is the test's edge.
        edge = math.nextafter(float(ordered[0]), -math.inf)
        lower = float(ordered[min(after, n - 1)]) if after or self.refuted(edge, alpha) else None
        return lower, upper

    def more_calls(self, limit: float, alpha: float) -> int | None:
        """Calls still to take before the share of slow calls seen so far decides, or None
        where that share is too close to the allowed one.
        """
        n, k, worth = len(self), self.count_over(limit), self.inflation(limit)
        size = n
        while size < _MAX_CALLS:
            size += max(1, size // 20)
            slow = k * size / n / worth
            if _supports(slow, size / worth, self.over, alpha):
                return size - n
            if _refutes(slow, size / worth, self.over, alpha):
                return size - n
        return None


def point(ordered: Sequence[float], percentile: float) -> float:
    """The smallest value that at least ``percentile`` % of the sorted values do not exceed."""
    rank = math.ceil(len(ordered) * percentile / 100 - 1e-9)
    return float(ordered[min(len(ordered), max(1, rank)) - 1])


def samples_needed(percentile: float, alpha: float = 0.005) -> int:
    """Calls needed to call a limit met when none of them is slower."""
    over = (100.0 - percentile) / 100.0
    return math.ceil(math.log(alpha) / math.log1p(-over))


def _supports(k: float, n: float, over: float, alpha: float) -> bool:
    return _cdf(math.ceil(k - 1e-9), math.floor(n + 1e-9), over) <= alpha


def _refutes(k: float, n: float, over: float, alpha: float) -> bool:
    return 1 - _cdf(math.floor(k + 1e-9) - 1, math.ceil(n - 1e-9), over) <= alpha


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
