"""Did quality fall?  Bounds on the drop between two models scored on the same rows.

    b rows only the baseline got right, c rows only the candidate got right, of n:
    drop = (b - c) / n, tested as theta_b - theta_c >= delta against < delta

0/1 scores: an exact unconditional test.  Outcomes are ordered by Tango's score statistic
(Statistics in Medicine 17, 1998, 891) and the tail is summed over the trinomial, at the
worst rate of discordant rows inside a Clopper-Pearson set of level 1 - gamma, with gamma
added to p (Berger and Boos, JASA 89, 1994, 1012).  b - c alone as the statistic is exact
too, but needs half as many rows again.  Rates weighted by class (balanced accuracy: 0 or the
class's weight): bounds of weighted counts (`weighted`).  Other real scores: a studentised
bootstrap that is never narrower than Student's t.  All seeded.  Does not know about groups or time
in the rows.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from autotune.records.measurement import Scores

GAMMA = 1e-3
MIN_ROWS = 30
_RESAMPLES = 2000
_MIN_REPLICATES = 100
_LEAST_SLACK = 1e-12
_TOLERANCE = 2e-4


class Bounds(NamedTuple):
    """One-sided bounds of the drop, each at the same level."""

    lower: float
    upper: float


class Pairing(ABC):
    """Two models scored on the same rows."""

    @property
    @abstractmethod
    def source(self) -> str: ...

    @abstractmethod
    def bounds(self, alpha: float) -> Bounds: ...

    @abstractmethod
    def _variance(self, drop: float) -> float:
        """Of one row's difference, about ``drop``."""

    def _unseen(self, slack: float, alpha: float) -> float:
        """Rows of which none may differ to rule out a further drop of ``slack``."""
        return 0.0

    def keeps(self, max_drop: float, alpha: float) -> bool:
        """The drop is below ``max_drop``, at level ``alpha``."""
        return self.bounds(alpha).upper <= max_drop

    def rows_for(self, max_drop: float, drop: float, alpha: float) -> int:
        """About how many rows like these would certify ``max_drop``."""
        slack = max(max_drop - drop, _LEAST_SLACK)
        needed = self._variance(drop) * (_normal(alpha) / slack) ** 2
        return math.ceil(max(self._unseen(slack, alpha), needed))


def clopper_pearson(k: int, n: int, alpha: float) -> tuple[float, float]:
    """Exact two-sided ``1 - alpha`` interval of a rate, ``k`` of ``n``."""
    from scipy.special import betaincinv

    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, alpha / 2))
    high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - alpha / 2))
    return low, high


def _score(b: Any, d: Any, n: int, delta: float) -> Any:
    """Tango's statistic for ``b`` of ``d`` discordant rows; small speaks for a smaller drop."""
    import numpy as np

    c = d - b
    linear = (2 * n - b + c) * delta - d
    root = np.sqrt(np.maximum(linear**2 + 8 * n * c * delta * (1 - delta), 0.0))
    q = np.clip((root - linear) / (4 * n), max(0.0, -delta), (1 - delta) / 2)
    variance = n * (2 * q + delta * (1 - delta))
    return (b - c - n * delta) / np.sqrt(np.maximum(variance, 1e-12))


def _tail_edges(z: float, d: Any, n: int, delta: float) -> Any:
    """For each ``d`` the largest b whose statistic is at most ``z`` (-1 where none is)."""
    import numpy as np

    low, high = np.full(d.shape, -1, dtype=np.int64), d.astype(np.int64).copy()
    while (low < high).any():
        middle = (low + high + 1) // 2
        inside = _score(middle, d, n, delta) <= z + 1e-9
        low, high = np.where(inside, middle, low), np.where(inside, high, middle - 1)
    return low


def _tail(rates: Any, d: Any, edges: Any, n: int, delta: float) -> Any:
    """P(statistic in the tail) for each rate of discordant rows in ``rates`` [m] -> [m]."""
    import numpy as np
    from scipy.special import betainc, gammaln, xlog1py, xlogy

    rate = rates[:, None]
    choose = gammaln(n + 1) - gammaln(d + 1) - gammaln(n - d + 1)
    weight = np.exp(choose + xlogy(d, rate) + xlog1py(n - d, -rate))
    worse = np.clip((1 + delta / np.maximum(rate, 1e-300)) / 2, 0.0, 1.0)
    inner = (edges >= 0) & (edges < d)  # elsewhere the inner cdf is 0 or 1
    a, b = np.where(inner, d - edges, 1.0), np.where(inner, edges + 1.0, 1.0)
    cdf = np.where(inner, betainc(a, b, 1 - worse), np.where(edges < 0, 0.0, 1.0))
    return np.minimum((weight * cdf).sum(axis=1), 1.0)


@lru_cache(maxsize=4096)
def p_value(b: int, c: int, n: int, delta: float) -> float:
    """Exact p of "the drop is at least ``delta``" given ``b`` worse and ``c`` better of ``n``."""
    import numpy as np

    low, high = clopper_pearson(b + c, n, GAMMA)
    low, high = max(low, abs(delta)), min(high, 1.0)
    if low >= high:
        return GAMMA
    reach = 8 * math.sqrt(n * high * (1 - min(high, 0.5))) + 12
    d = np.arange(max(0, int(n * low - reach)), min(n, int(n * high + reach)) + 1)
    z = float(_score(np.float64(b), np.float64(b + c), n, delta))
    edges = _tail_edges(z, d, n, delta)
    worst = 0.0
    for _ in range(3):  # a grid, then twice a finer one about its peak
        rates = np.linspace(low, high, 25)
        tails = _tail(rates, d, edges, n, delta)
        peak = int(tails.argmax())
        worst = max(worst, float(tails[peak]))
        low, high = float(rates[max(0, peak - 1)]), float(rates[min(24, peak + 1)])
    return min(1.0, worst + GAMMA)


@lru_cache(maxsize=256)
def upper_drop(b: int, c: int, n: int, alpha: float) -> float:
    """Upper ``1 - alpha`` bound of the drop: the largest that the exact test does not reject.

    The p-value is not quite monotone in delta, so a short scan above the root catches a
    later crossing.
    """
    low, high = (b - c) / n, 1.0
    tolerance = _TOLERANCE / 10 if n > 2000 else _TOLERANCE
    step = max(4 / n, 2 * math.sqrt(b + c + 1) / n)
    while low + step < high:  # bracket: nothing far above the estimate is ever visited
        if p_value(b, c, n, low + step) <= alpha:
            high = low + step
        else:
            low += step
    while high - low > tolerance:
        middle = (low + high) / 2
        if p_value(b, c, n, middle) > alpha:
            low = middle
        else:
            high = middle
    later = [high + step * i / 8 for i in range(1, 7) if high + step * i / 8 < 1]
    return max([high, *(delta for delta in later if p_value(b, c, n, delta) > alpha)])


def exact_bounds(b: int, c: int, n: int, alpha: float) -> Bounds:
    """One-sided exact bounds of the drop for 0/1 scores."""
    return Bounds(-upper_drop(c, b, n, alpha), upper_drop(b, c, n, alpha))


def unseen_drop(n: int, spread: float, alpha: float) -> float:
    """What ``n`` rows cannot rule out where none of them changed: rows that never showed up may
    differ, at a rate of at most ``1 - alpha**(1/n)``, by about ``spread`` (`differ_by`).
    """
    return float((1 - alpha ** (1 / n)) * spread)


@lru_cache(maxsize=1024)
def real_bounds(values: tuple[float, ...], spread: float, alpha: float) -> Bounds:
    """One-sided bounds of the mean of ``values`` [n].

    ``spread`` is what a row that never showed up may differ by (`differ_by`); equal values carry
    no variance of their own.
    """
    import numpy as np
    from scipy.special import stdtrit

    drops = np.asarray(values, dtype=float)
    n, mean = len(drops), float(drops.mean())
    unseen = unseen_drop(n, spread, alpha)
    if n < 2:
        return Bounds(mean - spread, mean + spread)
    error = float(drops.std(ddof=1)) / math.sqrt(n)
    if error <= 1e-12 * max(1.0, abs(mean)):
        return Bounds(mean - unseen, mean + unseen)
    student = float(stdtrit(n - 1, 1 - alpha)) * error
    t_low, t_high = _studentised(drops, alpha)
    lower = min(mean - t_high * error, mean - student, mean - unseen)
    upper = max(mean - t_low * error, mean + student, mean + unseen)
    return Bounds(lower, upper)


def _studentised(values: Any, alpha: float) -> tuple[float, float]:
    """The ``alpha`` and ``1 - alpha`` quantiles of the bootstrap t (Efron 1979), seeded."""
    import numpy as np

    rng = np.random.default_rng(0)
    n, mean = len(values), values.mean()
    chunk = max(1, 1_000_000 // n)
    statistics: list[Any] = []
    for start in range(0, _RESAMPLES, chunk):
        drawn = values[rng.integers(n, size=(min(chunk, _RESAMPLES - start), n))]
        error = drawn.std(axis=1, ddof=1) / math.sqrt(n)
        usable = error > 0
        statistics.append((drawn.mean(axis=1)[usable] - mean) / error[usable])
    pooled = np.concatenate(statistics)
    return float(np.quantile(pooled, alpha)), float(np.quantile(pooled, 1 - alpha))


def differ_by(values: tuple[float, ...]) -> float:
    """What a row that never showed up may differ by: of scores of few values the largest (a rare
    class that is lost is lost in rows of its weight), of others about their standard deviation.
    """
    import numpy as np

    return max(values) if _weights(values) else float(np.std(values))


# -- counts that weigh something: a rare class's rows are heavy -----------------------------
#
# Balanced accuracy is a mean of such weights.  A bootstrap, or Student's t, takes the rows seen for
# all there are: where few heavy rows changed, or none, it covers the truth in 70 to 90 % of cases
# for 95 claimed.  The bounds here cover it in more than claimed.


def _weights(values: tuple[float, ...]) -> bool:
    """Whether scores [n] may be 0 or their class's weight: ``k`` classes of different sizes, and so
    weights, have ``k (k + 1) / 2`` rows at least.
    """
    return min(values) >= 0 and len({*values} - {0.0}) <= math.sqrt(2 * len(values))


def weighted_excess(
    more: tuple[float, ...], less: tuple[float, ...], heaviest: float, alpha: float
) -> float:
    """Upper ``1 - alpha`` bound of the expected sum of ``more`` over that of ``less``, each a
    weight for each count, from the bounds of both (Zou and Donner, Statistics in Medicine 27, 2008,
    1693).  ``heaviest`` is the largest weight that a count could have had.
    """
    one, other = math.fsum(more), math.fsum(less)
    above = weighted_upper(more, heaviest, alpha) - one
    return one - other + math.hypot(above, other - weighted_lower(less, alpha))


def weighted_upper(weights: tuple[float, ...], heaviest: float, alpha: float) -> float:
    """Upper ``1 - alpha`` bound of the expected sum of weighted counts: the gamma bound of Fay and
    Feuer (Statistics in Medicine 16, 1997, 791), exact for Poisson counts of one weight.
    """
    return _gamma((*weights, heaviest), 1 - alpha)


def weighted_lower(weights: tuple[float, ...], alpha: float) -> float:
    """The lower one (`weighted_upper`)."""
    return _gamma(weights, alpha)


def _gamma(weights: tuple[float, ...], level: float) -> float:
    """Of the gamma distribution with the mean and variance of these counts."""
    from scipy.special import gammaincinv

    mean, variance = math.fsum(weights), math.fsum(w * w for w in weights)
    return variance / mean * float(gammaincinv(mean**2 / variance, level)) if variance else 0.0


# -- pairing ---------------------------------------------------------------------------------


def replicate_bounds(drops: Any, alpha: float) -> Bounds:
    """Percentile bounds of paired bootstrap replicates [r], rounded outwards."""
    import numpy as np

    return Bounds(
        float(np.quantile(drops, alpha, method="lower")),
        float(np.quantile(drops, 1 - alpha, method="higher")),
    )


def binary(values: tuple[float, ...]) -> bool:
    """All scores are 0 or 1."""
    return set(values) <= {0.0, 1.0}


def pair(candidate: Scores, baseline: Scores, sign: float) -> Pairing | None:
    """Pair by row (``sign`` is -1 where lower is better), or by replicate, or not at all.

    Raises:
        ValueError: per-sample scores or replicates of different number.
    """
    import numpy as np

    ours, theirs = candidate.per_sample, baseline.per_sample
    if ours and theirs:
        if len(ours) != len(theirs):
            raise ValueError(f"{len(ours)} and {len(theirs)} per-sample scores do not pair")
        if binary(ours) and binary(theirs):
            b = sum(sign * (t - o) > 0 for o, t in zip(ours, theirs, strict=True))
            c = sum(sign * (t - o) < 0 for o, t in zip(ours, theirs, strict=True))
            return Exact(b, c, len(ours))
        fell = tuple(sign * (t - o) for o, t in zip(ours, theirs, strict=True))
        changed = ((o, t) for o, t in zip(ours, theirs, strict=True) if o != t)
        few = _weights(theirs) and _weights(ours)
        if few and all(0.0 in pair for pair in changed):
            worse, better = (tuple(s * f for f in fell if s * f > 0) for s in (1, -1))
            return Weighted(worse, better, len(ours), max(*ours, *theirs))
        return Real(fell, differ_by(theirs))
    if candidate.replicates and baseline.replicates:
        if len(candidate.replicates) != len(baseline.replicates):
            raise ValueError("replicates of different number do not pair")
        drops = sign * (np.asarray(baseline.replicates) - np.asarray(candidate.replicates))
        return Resampled(drops, candidate.rows)
    return None


def _counted(worse: int, better: int, rows: int) -> str:
    return f"{worse} row{'' if worse == 1 else 's'} worse and {better} better of {rows}"


@dataclass(frozen=True)
class Exact(Pairing):
    """0/1 scores: ``worse`` and ``better`` rows of ``rows``."""

    worse: int
    better: int
    rows: int

    @property
    def source(self) -> str:
        return f"exact paired test, {_counted(self.worse, self.better, self.rows)}"

    def bounds(self, alpha: float) -> Bounds:
        return exact_bounds(self.worse, self.better, self.rows, alpha)

    def keeps(self, max_drop: float, alpha: float) -> bool:
        if not super().keeps(max_drop, alpha):
            return False
        return max_drop >= 1 or p_value(self.worse, self.better, self.rows, max_drop) <= alpha

    def _variance(self, drop: float) -> float:
        return (self.worse + self.better) / self.rows - drop**2

    def _unseen(self, slack: float, alpha: float) -> float:
        return math.log(alpha - GAMMA) / math.log1p(-min(slack, 0.99))


@dataclass(frozen=True)
class Weighted(Pairing):
    """Rates weighted by class: the weights of the rows that are ``worse`` and ``better``, of
    ``rows``, and the heaviest class's.
    """

    worse: tuple[float, ...]
    better: tuple[float, ...]
    rows: int
    heaviest: float

    @property
    def source(self) -> str:
        counted = _counted(len(self.worse), len(self.better), self.rows)
        return f"paired, weighted by class, {counted}"

    def bounds(self, alpha: float) -> Bounds:
        up = weighted_excess(self.worse, self.better, self.heaviest, alpha)
        down = weighted_excess(self.better, self.worse, self.heaviest, alpha)
        return Bounds(-down / self.rows, up / self.rows)

    def _variance(self, drop: float) -> float:
        return math.fsum(w * w for w in (*self.worse, *self.better)) / self.rows - drop**2

    def _unseen(self, slack: float, alpha: float) -> float:
        return -math.log(alpha) * self.heaviest / slack


@dataclass(frozen=True)
class Real(Pairing):
    """Real scores: ``drops`` [rows], and what a row may differ by (`differ_by`)."""

    drops: tuple[float, ...]
    spread: float

    @property
    def source(self) -> str:
        return f"paired bootstrap of {len(self.drops)} rows"

    def bounds(self, alpha: float) -> Bounds:
        return real_bounds(self.drops, self.spread, alpha)

    def _variance(self, drop: float) -> float:
        return math.fsum((fell - drop) ** 2 for fell in self.drops) / len(self.drops)

    def _unseen(self, slack: float, alpha: float) -> float:
        return -math.log(alpha) * self.spread / slack


@dataclass(frozen=True)
class Resampled(Pairing):
    """Replicates of a whole-set metric: ``drops`` [replicates] of a set of ``rows``."""

    drops: Any
    rows: int

    @property
    def source(self) -> str:
        return f"paired bootstrap of {self.rows} rows, {len(self.drops)} replicates"

    def bounds(self, alpha: float) -> Bounds:
        return replicate_bounds(self.drops, alpha)

    def keeps(self, max_drop: float, alpha: float) -> bool:
        return len(self.drops) >= _MIN_REPLICATES and super().keeps(max_drop, alpha)

    def _variance(self, drop: float) -> float:
        return self.rows * float(self.drops.var())


def _normal(alpha: float) -> float:
    from scipy.special import ndtri

    return float(-ndtri(alpha))
