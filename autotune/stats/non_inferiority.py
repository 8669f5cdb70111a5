"""Non-inferiority of quality on the same rows, and what a number of rows can certify.

    candidate scores --+
                       +-- pair by row -- bounds of the drop -- MET / NOT_MET / UNDECIDED
    baseline scores ---+

The statistics are in `paired`.
"""

import math

from autotune.records.measurement import Scores, Verdict, VerdictName
from autotune.stats import paired
from autotune.units import metric

_MAX_ROWS = 10_000_000


def quality_drop(
    candidate: Scores,
    baseline: Scores,
    max_drop: float,
    *,
    higher_is_better: bool,
    alpha: float = 0.05,
) -> Verdict:
    """Did quality fall by at most ``max_drop``?  One-sided, paired by row.

    ``estimate`` is the drop (positive is worse), ``lower`` and ``upper`` its ``1 - alpha``
    bounds, in the metric's own unit.

    Raises:
        ValueError: the two were not scored on the same rows.
    """
    if candidate.rows != baseline.rows:
        raise ValueError(
            f"candidate scored on {candidate.rows} rows and baseline on {baseline.rows}: "
            "a paired test needs the same rows"
        )
    sign = 1.0 if higher_is_better else -1.0
    drop = sign * (baseline.quality - candidate.quality)
    pairing = paired.pair(candidate, baseline, sign)
    bounds = pairing.bounds(alpha) if pairing else None
    verdict, note = _decide(pairing, candidate.rows, drop, max_drop, alpha)
    return Verdict(
        name="quality",
        unit="",
        limit=max_drop,
        estimate=drop,
        lower=bounds.lower if bounds else None,
        upper=bounds.upper if bounds else None,
        confidence=1 - alpha,
        samples=candidate.rows,
        verdict=verdict,
        source=pairing.source if pairing else "one number over the whole set",
        note=note,
    )


def _decide(
    pairing: paired.Pairing | None, rows: int, drop: float, max_drop: float, alpha: float
) -> tuple[VerdictName, str | None]:
    if pairing and pairing.bounds(alpha).lower > max_drop:
        return "NOT_MET", None
    if pairing and rows >= paired.MIN_ROWS and pairing.keeps(max_drop, alpha):
        return "MET", None
    return "UNDECIDED", _more_rows(pairing, rows, drop, max_drop, alpha)


def _more_rows(
    pairing: paired.Pairing | None, rows: int, drop: float, max_drop: float, alpha: float
) -> str:
    """What would turn UNDECIDED into a decision."""
    if pairing is None:
        return "a metric without per-sample scores: define score(output, target) to decide"
    if drop >= max_drop:
        return (
            f"the drop seen ({metric(drop)}) reaches the limit: more rows could only confirm that"
        )
    needed = max(paired.MIN_ROWS, pairing.rows_for(max_drop, drop, alpha))
    if needed > _MAX_ROWS:
        return (
            "the drop seen lies at the limit: no number of rows would decide, another limit would"
        )
    if needed <= rows:  # a bound that just misses
        needed = math.ceil(1.1 * rows)
    return f"about {needed} rows would certify this drop; there are {rows}"


def quality_interval(scores: Scores) -> tuple[float, float] | None:
    """95 % interval of the quality itself; None where only one number is known."""
    import numpy as np

    if scores.per_sample:
        values = scores.per_sample
        if paired.binary(values):
            return paired.clopper_pearson(int(sum(values)), len(values), 0.05)
        bounds = paired.real_bounds(values, float(np.std(values)), 0.025)
        return bounds.lower, bounds.upper
    if scores.replicates:
        bounds = paired.replicate_bounds(np.asarray(scores.replicates), 0.025)
        return min(bounds.lower, scores.quality), max(bounds.upper, scores.quality)
    return None


def smallest_certifiable_drop(
    rows: int, alpha: float = 0.05, spread: float | None = None
) -> float | None:
    """The smallest ``max_drop`` that ``rows`` scores, 0/1 ones or real ones with this standard
    deviation, can certify when no row changes; None under 30 rows.
    """
    if rows < paired.MIN_ROWS:
        return None
    if spread is None:
        return paired.upper_drop(0, 0, rows, alpha)
    return paired.unseen_drop(rows, spread, alpha)


def rows_needed(drop: float, alpha: float = 0.05, spread: float | None = None) -> int | None:
    """Rows of such scores (`smallest_certifiable_drop`) with which ``drop`` can be certified when
    no row changes; None where no number can (``drop`` is 0 or less).
    """
    if drop <= 0:
        return None
    if drop >= (1 if spread is None else spread):
        return paired.MIN_ROWS
    if spread is not None:
        return max(paired.MIN_ROWS, math.ceil(math.log(alpha) / math.log1p(-drop / spread)))
    rows = math.ceil(math.log(alpha - paired.GAMMA) / math.log1p(-drop))
    rows = max(paired.MIN_ROWS, rows)
    while rows < _MAX_ROWS and paired.upper_drop(0, 0, rows, alpha) > drop:
        rows += max(1, rows // 500)
    return rows
