"""Limits against measurements: MET, NOT_MET, UNDECIDED or NOT_MEASURED.

    latency       exact binomial test over every call (`quantile`), at one look of a fixed number
    energy        Student's t over launches, plus the counter's own uncertainty
    memory, time  one deterministic figure
    min_quality   the interval of the quality (the drop of quality: `non_inferiority`)

What is missing is never MET, and every UNDECIDED says what would decide it.  Launches are taken
as independent of each other.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import stdev

from autotune import units
from autotune.records.measurement import EnergyLabel, Interval, Scores, Verdict, VerdictName
from autotune.stats import launch_ratio
from autotune.stats import quantile as tails
from autotune.stats.non_inferiority import quality_interval

MIN_LAUNCHES = 3
_NOTED_INFLATION = 1.5
"""Calls per independent one, from which on a note gives the effective sample size."""


def latency(
    launches: Sequence[Sequence[float]],
    limit: float,
    percentile: float,
    *,
    alpha: float = 0.005,
    what: str = "single calls",
    step: float = 0.0,
) -> Verdict:
    """Is the ``percentile`` of calls at most ``limit`` (seconds)?  One look, at level ``alpha``.

    MET needs the pooled test, at least three launches, and each launch's own point quantile
    within the limit.  ``lower`` and ``upper`` are exact order-statistic bounds, each at
    ``1 - alpha``.  A call that timed out is infinite.  ``step`` is the resolution of the
    clock: a call may have taken that much more, or less.
    """
    runs = [launch for launch in launches if len(launch)]
    source = f"p{percentile:g} of {what}, {len(runs)} launches"
    if not runs:
        return figure_verdict(
            "latency", "s", limit, alpha=alpha, source=source, note="no call was timed"
        )
    pooled = tails.Tail(runs, percentile)
    lower, upper = pooled.bounds(alpha)
    lower = None if lower is None else max(min(lower, 0.0), lower - step)
    upper = None if upper is None else upper + step
    if pooled.supported(limit - step, alpha):  # the inflation depends on the limit tested
        upper = limit if upper is None else min(upper, limit)
    verdict, note = _decide(pooled, limit, step, alpha, percentile)
    return Verdict(
        name="latency",
        unit="s",
        limit=limit,
        estimate=tails.finite(tails.point(pooled.ordered, percentile)),
        lower=lower,
        upper=upper,
        confidence=1 - alpha,
        samples=len(pooled),
        verdict=verdict,
        source=source,
        note=_with_sample_size(note, len(pooled), pooled.inflation(limit)),
    )


def _decide(
    pooled: tails.Tail, limit: float, step: float, alpha: float, percentile: float
) -> tuple[VerdictName, str | None]:
    if pooled.refuted(limit + step, alpha):
        return "NOT_MET", None
    if not pooled.supported(limit - step, alpha):
        if step and pooled.supported(limit, alpha):
            return "UNDECIDED", "the clock is too coarse: a finer one would decide"
        return "UNDECIDED", _more_calls(pooled, limit, alpha)
    doubt = _launch_doubt(pooled.runs, limit - step, percentile)
    return ("UNDECIDED", doubt) if doubt else ("MET", None)


def _with_sample_size(note: str | None, calls: int, inflation: float) -> str | None:
    if inflation < _NOTED_INFLATION:
        return note
    size = f"effective sample size {calls / inflation:.0f} of {calls} (calls are autocorrelated)"
    return f"{note}; {size}" if note else size


def _launch_doubt(runs: Sequence[Sequence[float]], limit: float, percentile: float) -> str | None:
    """Why the pooled test alone does not suffice for MET, or None."""
    if len(runs) < MIN_LAUNCHES:
        return f"{len(runs)} of the {MIN_LAUNCHES} launches that a verdict needs: launch again"
    for number, run in enumerate(runs, start=1):
        own = tails.point(sorted(run), percentile)
        if own > limit:
            shown = units.show(tails.finite(own), "s") if own < math.inf else "without an answer"
            return (
                f"launch {number} alone has p{percentile:g} {shown}, over the "
                "limit: launches differ, more of them would decide"
            )
    return None


def _more_calls(pooled: tails.Tail, limit: float, alpha: float) -> str:
    more = pooled.more_calls(limit, alpha)
    if more is None:
        return (
            "the quantile lies at the limit: no number of calls would decide, another limit would"
        )
    return f"about {more} more calls would decide"


def energy(
    per_launch: Sequence[float | None],
    limit: float,
    *,
    label: EnergyLabel,
    uncertainty: float | None = None,
    modelled: Interval | None = None,
    accept_modelled: bool = False,
    origin: str = "local",
    domains: Sequence[str] = (),
    alpha: float = 0.05,
    reason: str | None = None,
) -> Verdict:
    """Joules per sample of each launch against ``limit``.

    ``uncertainty`` (J per sample) is the half-width of the counter and widens the bound.
    ``reason`` says why nothing was read, and the remedy.  ``modelled`` decides only with
    ``accept_modelled``, and never where something was measured.
    """
    values = [value for value in per_launch if value is not None]
    measured = bool(values) and len(values) == len(per_launch) and label.startswith("measured")
    if measured:
        return _measured_energy(
            values, limit, uncertainty or 0.0, _source(label, origin, domains), alpha
        )
    if modelled is not None and accept_modelled:
        kind = label if label.startswith("modelled_") else "power model"
        return _modelled_energy(modelled, limit, f"{kind} (modelled, not measured)")
    if values and label.startswith("measured"):
        why = f"{len(per_launch) - len(values)} of {len(per_launch)} launches could not be read"
    else:
        why = "no energy counter could be read"
    note = f"{why}: {reason}" if reason else f"{why}; `autotune doctor` names the remedy"
    if modelled is not None:
        shown = units.show(modelled.value, "J")
        note += f"; the model says {shown} ({units.span(modelled.low, modelled.high, 'J')})"
        note += ", which decides only with --accept-modelled-energy"
    source = _source(label, origin, domains)
    return figure_verdict("energy", "J", limit, alpha=alpha, source=source, note=note)


def _source(label: str, origin: str, domains: Sequence[str]) -> str:
    where = "" if origin == "local" else f" ({origin})"
    return f"{label}{where}: {', '.join(domains)}" if domains else f"{label}{where}"


def _measured_energy(
    values: Sequence[float], limit: float, uncertainty: float, source: str, alpha: float
) -> Verdict:
    n, mean = len(values), math.fsum(values) / len(values)
    lower = upper = None
    verdict: VerdictName = "UNDECIDED"
    note: str | None = None
    if n < 2:
        note = f"one launch has no spread: {MIN_LAUNCHES} launches would decide"
    else:
        spread = stdev(values)
        half = launch_ratio.student(alpha, n - 1) * spread / math.sqrt(n) + uncertainty
        lower, upper = mean - half, mean + half
        if upper <= limit:
            verdict = "MET"
        elif lower > limit:
            verdict = "NOT_MET"
        elif uncertainty >= half / 2:
            note = "the counter is too coarse: longer windows would decide"
        else:
            note = f"more launches than {n} would decide"
    if mean < 3 * uncertainty:
        note = (
            f"{note + '; ' if note else ''}below the counter's resolution: measure longer windows"
        )
    return Verdict(
        name="energy",
        unit="J",
        limit=limit,
        estimate=mean,
        lower=lower,
        upper=upper,
        confidence=1 - alpha,
        samples=n,
        verdict=verdict,
        source=source,
        note=note,
    )


def _modelled_energy(modelled: Interval, limit: float, source: str) -> Verdict:
    """The model's whole interval must lie on one side; it has no confidence level."""
    verdict: VerdictName = "UNDECIDED"
    note = "modelled, accepted by --accept-modelled-energy"
    if modelled.high <= limit:
        verdict = "MET"
    elif modelled.low > limit:
        verdict = "NOT_MET"
    else:
        note += "; the limit lies inside the model's range: a counter, or the machine's own idle"
        note += " and full watts, would decide"
    return Verdict(
        name="energy",
        unit="J",
        limit=limit,
        estimate=modelled.value,
        lower=modelled.low,
        upper=modelled.high,
        confidence=0.0,
        samples=0,
        verdict=verdict,
        source=source,
        note=note,
    )


def memory(per_launch: Sequence[float | None], limit: float) -> Verdict:
    """Peak resident bytes of each launch's process: the largest counts."""
    values = [value for value in per_launch if value is not None]
    source = f"peak resident memory of the serving process, {len(values)} launches"
    if not values or len(values) < len(per_launch):
        note = "the peak memory of a launch could not be read"
        return figure_verdict("memory", "B", limit, alpha=0.0, source=source, note=note)
    verdict: VerdictName = "MET" if max(values) <= limit else "NOT_MET"
    return figure_verdict(
        "memory", "B", limit, verdict=verdict, values=values, alpha=0.0, source=source
    )


def scalar(
    name: str, unit: str, value: float | None, limit: float, source: str, *, note: str | None = None
) -> Verdict:
    """One deterministic figure against its limit, such as the seconds of the final training."""
    if value is None:
        note = note or "not measured in this run"
        return figure_verdict(name, unit, limit, alpha=0.0, source=source, note=note)
    verdict: VerdictName = "MET" if value <= limit else "NOT_MET"
    return figure_verdict(
        name, unit, limit, verdict=verdict, values=[value], alpha=0.0, source=source, note=note
    )


def figure_verdict(
    name: str,
    unit: str,
    limit: float,
    *,
    alpha: float,
    source: str,
    verdict: VerdictName = "NOT_MEASURED",
    values: Sequence[float] = (),
    note: str | None = None,
) -> Verdict:
    """A verdict from bare figures, the largest of which counts, or from none."""
    return Verdict(
        name=name,
        unit=unit,
        limit=float(limit),
        estimate=float(max(values)) if values else None,
        lower=float(min(values)) if values else None,
        upper=float(max(values)) if values else None,
        confidence=1 - alpha,
        samples=len(values),
        verdict=verdict,
        source=source,
        note=note,
    )


def min_quality(scores: Scores, limit: float, higher_is_better: bool) -> Verdict:
    """Is the quality itself at least ``limit`` (at most, where lower is better)?

    MET where its whole 95 % interval is, NOT_MET where none of it is.
    """
    bounds = quality_interval(scores)
    found: VerdictName = "UNDECIDED"
    note: str | None = "more test rows would decide"
    if bounds is not None:
        low, high = bounds if higher_is_better else (-bounds[1], -bounds[0])
        wanted = limit if higher_is_better else -limit
        if low >= wanted:
            found, note = "MET", None
        elif high < wanted:
            found, note = "NOT_MET", None
    return Verdict(
        name="min_quality",
        unit="",
        limit=limit,
        estimate=scores.quality,
        lower=bounds[0] if bounds else None,
        upper=bounds[1] if bounds else None,
        confidence=0.95,
        samples=scores.rows,
        verdict=found,
        source="the interval of the quality on test",
        note=note,
        at_least=higher_is_better,
    )


def exit_code(verdicts: Iterable[Verdict]) -> int:
    """0 when every budget is MET, 3 when any is NOT_MET, else 4; no verdict at all proves
    nothing and is 4.
    """
    names = {verdict.verdict for verdict in verdicts}
    if "NOT_MET" in names:
        return 3
    return 0 if names == {"MET"} else 4
