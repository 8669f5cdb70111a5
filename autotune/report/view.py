"""Verdicts and verified plans of a report as titled tables of plain text.

    Report -> tables.sections -> (Section(title, lines, tables), ...) -> text, html

Numbers become readable here and in `tables`, by `units` alone.  Text is plain; `text` and `html`
escape it.
"""

from typing import NamedTuple

from autotune import units
from autotune.records.measurement import Interval, Verdict
from autotune.records.plan import Recipe
from autotune.records.report import PlanResult, Quantiles, Report
from autotune.report.describe import describe, quantity

NONE = "-"
ONE_AT_A_TIME = "(one request at a time, warm)"
_ENDS = {
    0: "every limit is met",
    3: "a limit is not met",
    4: "a limit is undecided or was not measured",
}


class Table(NamedTuple):
    """``head`` names the columns of ``rows``; the first column is the row's name."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


class Section(NamedTuple):
    """``fold`` marks details that a reader may skip."""

    key: str
    title: str
    lines: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    fold: bool = False


def headline(report: Report) -> str:
    """How it ended, in one line."""
    if report.status != "complete":
        return f"{report.task}: {report.status}; what is known so far"
    return f"{report.task}: {_ENDS.get(report.exit_code, f'exit {report.exit_code}')}"


# -- verdicts ------------------------------------------------------------------------------


def label(verdict: Verdict, percentile: float) -> str:
    """``latency p95``, ``drop of quality``, ``train time``."""
    if verdict.name == "latency":
        return f"latency p{percentile:g}"
    if verdict.name == "quality":
        return "drop of quality"
    return verdict.name.replace("_", " ")


def _how(verdict: Verdict) -> str:
    """How the number was obtained, and the verdict's note."""
    text = f"{verdict.source}; {verdict.note}" if verdict.note else verdict.source
    closed = verdict.name == "latency" and "requests per second" not in verdict.source
    return f"{text} {ONE_AT_A_TIME}" if closed else text


def confidence(verdict: Verdict) -> str:
    """The level of each bound; none where a model or a single figure decides."""
    return units.percent(verdict.confidence) if 0 < verdict.confidence < 1 else NONE


def bounds(verdict: Verdict) -> str:
    """Lower and upper bound in the verdict's unit."""
    if verdict.lower is None and verdict.upper is None:
        return NONE
    if verdict.lower == verdict.upper:  # one figure, nothing to bound
        return NONE
    return units.span(verdict.lower, verdict.upper, _unit(verdict))


def _unit(verdict: Verdict) -> str:
    return verdict.unit if verdict.unit in ("s", "J", "B", "W") else ""


def verdicts(report: Report) -> Section:
    head = ("Budget", "Verdict", "Limit", "Measured", "Bounds", "Confidence", "Samples", "How")
    rows = tuple(
        (
            label(v, report.budget.percentile),
            v.verdict,
            quantity(v.limit, v),
            quantity(v.estimate, v),
            bounds(v),
            confidence(v),
            str(v.samples),
            _how(v),
        )
        for v in report.verdicts
    )
    lines = () if rows else ("No verdict was reached.",)
    return Section("verdicts", "Verdicts", lines, (Table(head, rows),))


def distances(report: Report) -> tuple[str, ...]:
    """How far the plan is from each limit that it does not keep."""
    out = []
    for verdict in report.verdicts:
        if verdict.verdict == "MET":
            continue
        name = label(verdict, report.budget.percentile)
        limit = quantity(verdict.limit, verdict)
        if verdict.estimate is None:
            line = f"{name}: not measured, so the distance to {limit} is unknown"
        else:
            line = f"{name}: {quantity(verdict.estimate, verdict)} against {limit}"
            line += _ratio(verdict)
        out.append(line)
    return tuple(out)


def _ratio(verdict: Verdict) -> str:
    if verdict.estimate is None or verdict.limit <= 0:
        return ""
    within = (
        verdict.estimate >= verdict.limit
        if verdict.at_least
        else (verdict.estimate <= verdict.limit)
    )
    if within:
        return ", within it but not with confidence"
    return f", {units.show(verdict.estimate / verdict.limit, 'x').replace(' ', '')} the limit"


def distance(report: Report) -> Section:
    lines = distances(report)
    if not lines:
        return Section("distance", "Distance to the limits")
    if report.chosen is not None:
        name = describe(report.chosen.plan.deployment)
        broken = any(verdict.verdict == "NOT_MET" for verdict in report.verdicts)
        what = "The least-violating plan" if broken else "The plan, not proved to meet every limit"
        lines = (f"{what}: {name}.", *lines)
    return Section("distance", "Distance to the limits", lines)


# -- chosen beside baseline ----------------------------------------------------------------


def plans(report: Report) -> tuple[tuple[str, PlanResult], ...]:
    """The verified plans by the name of their column; the best lossless one has a column of its
    own where it is neither the chosen plan nor the baseline.
    """
    lossless = report.lossless
    named = (
        ("baseline", report.baseline),
        ("earlier plan", report.earlier),
        ("best lossless", None if lossless in (report.chosen, report.baseline) else lossless),
        ("chosen", report.chosen),
    )
    return tuple((name, plan) for name, plan in named if plan is not None)


def tail(latency: Quantiles | None, percentile: float) -> float | None:
    """The quantile at ``percentile``, where it is known."""
    if latency is None:
        return None
    if latency.percentile == percentile and latency.value is not None:
        return latency.value
    return {50.0: latency.p50, 95.0: latency.p95, 99.0: latency.p99}.get(percentile)


def interval_of(latency: Quantiles | None) -> str:
    """The 95 % interval of the budget percentile."""
    if latency is None or (latency.low is None and latency.high is None):
        return NONE
    return units.span(latency.low, latency.high, "s")


def modelled(interval: Interval | None) -> str:
    """A modelled energy with its range."""
    if interval is None:
        return NONE
    return f"{units.show(interval.value, 'J')} ({units.span(interval.low, interval.high, 'J')})"


def quality_interval(plan: PlanResult) -> str:
    """The 95 % interval of the quality on *test*."""
    if plan.quality_interval is None:
        return NONE
    low, high = plan.quality_interval
    return f"{units.metric(low)} to {units.metric(high)}"


def figures(plan: PlanResult, percentile: float) -> tuple[tuple[str, str], ...]:
    """Every figure of a verified plan with its name; the same names for every plan."""
    latency = plan.latency_s
    named = f"p{percentile:g}"
    rows = [("p50 latency", units.show(latency.p50 if latency else None, "s"))]
    if percentile not in (50.0, 95.0, 99.0):
        rows.append((f"{named} latency", units.show(tail(latency, percentile), "s")))
    rows += [
        ("p95 latency", units.show(latency.p95 if latency else None, "s")),
        ("p99 latency", units.show(latency.p99 if latency else None, "s")),
        (f"{named} 95 % interval", interval_of(latency)),
        *_under_load(plan, percentile),
        ("calls measured", str(latency.samples) if latency else "0"),
        ("quality (test)", units.metric(plan.quality)),
        ("quality 95 % interval", quality_interval(plan)),
        *_balanced(plan),
        ("energy per sample", units.show(plan.energy_j_per_sample, "J")),
        ("energy, modelled", modelled(plan.energy_modelled)),
        ("throughput", units.per_second(plan.throughput_per_s)),
        ("throughput 95 % interval", _rates(plan.throughput_interval)),
        ("memory", units.show(plan.memory_bytes, "B")),
        ("memory, 95 % prediction interval", _bytes(plan.memory_interval)),
        *_on_gpu(plan),
        ("size on disk", units.show(plan.size_bytes, "B")),
        ("load", units.show(plan.load_s, "s")),
        ("first call", units.show(plan.first_call_s, "s")),
        ("launches", str(plan.launches)),
        *([("launches repeated", str(plan.disturbed))] if plan.disturbed else []),
    ]
    return tuple(rows)


def _on_gpu(plan: PlanResult) -> list[tuple[str, str]]:
    if plan.device_memory_bytes is None:
        return []
    return [("memory of the GPU", units.show(plan.device_memory_bytes, "B"))]


def _balanced(plan: PlanResult) -> list[tuple[str, str]]:
    """For classifiers: shows a model that predicts only the majority class."""
    rows = [
        ("balanced accuracy", plan.balanced_accuracy),
        ("worst class recall", plan.worst_class_recall),
    ]
    return [(name, units.metric(value)) for name, value in rows if value is not None]


def _rates(interval: Interval | None) -> str:
    if interval is None:
        return NONE
    return f"{units.per_second(interval.low)} to {units.per_second(interval.high)}"


def _bytes(interval: Interval | None) -> str:
    return NONE if interval is None else units.span(interval.low, interval.high, "B")


def _under_load(plan: PlanResult, percentile: float) -> list[tuple[str, str]]:
    """The response time beside the service time, where requests came at a rate."""
    if plan.response_s is None:
        return []
    named = f"p{percentile:g} response"
    return [(named, units.show(tail(plan.response_s, percentile), "s"))]


_STEP = {
    "compile": "compiled step",
    "recompute": "blocks recomputed",
    "channels_last": "channels last",
}


def recipe(found: Recipe | None) -> str:
    """``adamw lr=0.003 weight_decay=0.01 one_cycle, batch 64, fp32, single, 2 threads``."""
    if found is None:
        return "came trained"
    names = ("momentum", "beta1", "beta2", "eps")
    parts = [found.optimizer, f"lr={found.lr:.3g}"]
    parts += [f"{n}={v:.3g}" for n in names if (v := getattr(found, n)) is not None]
    if found.weight_decay:
        parts.append(f"weight_decay={found.weight_decay:.3g}")
    if found.schedule != "constant":
        parts.append(found.schedule)
    regular = ("warmup", "clip_norm", "label_smoothing", "ema")
    parts += [f"{n}={v:.3g}" for n in regular if (v := getattr(found, n))]
    parts += [
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in found.params.items()
    ]
    ranks = f" x {found.ranks} ranks" if found.ranks > 1 else ""
    plural = "" if found.threads == 1 else "s"
    divided = f" in {found.accumulate} parts" if found.accumulate > 1 else ""
    workers = f", {found.workers} loader workers" if found.workers else ""
    more = [name for name in _STEP if getattr(found, name)]
    step = f", {', '.join(_STEP[name] for name in more)}" if more else ""
    clock = f", {units.show(found.clock_hz, 'Hz')} at most" if found.clock_hz else ""
    watts = f", {found.power_limit_w:g} W at most" if found.power_limit_w else ""
    return (
        f"{' '.join(parts)}, batch {found.batch_size}{divided}, {found.precision}, "
        f"{found.parallel}{ranks}, {found.threads} thread{plural}{step}{workers}{watts}{clock}"
    )


def comparison(report: Report) -> Section:
    named = plans(report)
    if not named:
        return Section("comparison", "Chosen plan and baseline")
    columns = [dict(figures(plan, report.budget.percentile)) for _, plan in named]
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = tuple((key, *(column.get(key, NONE) for column in columns)) for key in keys)
    lines = [f"{name}: {describe(plan.plan.deployment)}" for name, plan in named]
    if report.chosen is not None:
        chosen = report.chosen.plan
        lines.append(f"recipe: {recipe(chosen.recipe)}, {chosen.epochs} epochs")
    if report.why.kept_baseline:
        lines.append("The baseline is kept: nothing beat it beyond noise.")
    head = ("", *(name for name, _ in named))
    return Section("comparison", "Chosen plan and baseline", tuple(lines), (Table(head, rows),))
