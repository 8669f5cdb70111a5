"""The Pareto plot as inline SVG: latency across, quality up, one mark for each deployment.

    quality
      |      o---o        line: Pareto front     filled: within the limits
      |  o---|   .        dashed: the limits     hollow: breaks one
      +------------ latency (log where the range is wide)

Colours come from the page's style (``--series-N``), so that the plot follows light and dark.
"""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from autotune import units
from autotune.records.plan import Deployment
from autotune.records.report import DeployTrial, Report
from autotune.report.describe import brief, latency_of
from autotune.report.plain_text import printable

_WIDTH, _HEIGHT = 860, 430
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 26, 24, 56
_HALF_LABEL = 50
_REACH = 2.0
"""Of the span of what must be seen: how far above and below it the axis goes."""
_SMALLEST, _LARGEST = 1e-30, 1e30  # beyond these no axis can be drawn
SERIES = 6


class Dot(NamedTuple):
    trial: DeployTrial
    x: float
    y: float


class Axis(NamedTuple):
    """Maps values to pixels.  ``ticks`` are values."""

    place: Callable[[float], float]
    ticks: tuple[float, ...]


def plot(report: Report) -> str:
    """SVG and its legend as HTML, or "" where no trial has both latency and quality."""
    dots = _dots(report)
    if not dots:
        return ""
    runtimes = sorted({dot.trial.deployment.runtime for dot in dots})
    limit, floor = _limit(report), _floor(report, dots)
    xs = [dot.x for dot in dots] + ([limit] if limit else [])
    ys = _in_view(report, dots, floor)
    across = _axis(xs, _LEFT, _WIDTH - _RIGHT, log=max(xs) > 6 * min(xs))
    up = _axis(ys, _HEIGHT - _BOTTOM, _TOP, log=False)
    parts = [
        *_frame(report, across, up),
        *_limits(across, up, limit, floor),
        *_front(report, dots, across, up),
        *(_mark(report, dot, across, up, runtimes) for dot in dots),
    ]
    label = f"Latency and quality of {len(dots)} deployments"
    svg = (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )
    return f"<figure>{svg}{_legend(report, dots, runtimes, limit, floor)}</figure>"


def _dots(report: Report) -> list[Dot]:
    out = []
    for trial in report.deploy_trials:
        x, y = latency_of(trial), trial.quality
        if trial.state != "complete" or x is None or y is None:
            continue
        if _SMALLEST < x < _LARGEST and abs(y) < _LARGEST:
            out.append(Dot(trial, x, y))
    return out


def _limit(report: Report) -> float | None:
    """The latency limit in seconds, resolved."""
    found = [
        v.limit for v in report.verdicts if v.name == "latency" and _SMALLEST < v.limit < _LARGEST
    ]
    return found[0] if found else None


def _deployment(report: Report, name: str) -> Deployment | None:
    plan = getattr(report, name)
    return plan.plan.deployment if plan is not None else None


def _floor(report: Report, dots: Sequence[Dot]) -> float | None:
    """The lowest allowed quality on *validation*: the baseline's there, less the allowed drop."""
    baseline = _deployment(report, "baseline")
    base = [dot.y for dot in dots if dot.trial.deployment == baseline]
    drop = [v.limit for v in report.verdicts if v.name == "quality" and abs(v.limit) < _LARGEST]
    if not base or not drop:
        return None
    return base[0] - drop[0] if report.survey.task.higher_is_better else base[0] + drop[0]


def _in_view(report: Report, dots: Sequence[Dot], floor: float | None) -> list[float]:
    """Qualities that the axis spans: those of plans within the limits or on the front, of the
    chosen one and the baseline, and what lies near them; one ruined model must not flatten these.
    """
    named = [_deployment(report, name) for name in ("chosen", "baseline")]
    shown = [
        d.y
        for d in dots
        if d.trial.feasible or d.trial.number in report.pareto or d.trial.deployment in named
    ]
    shown = (shown or [d.y for d in dots]) + ([floor] if floor is not None else [])
    low, high = min(shown), max(shown)
    reach = _REACH * ((high - low) or 0.05 * abs(high) or 1.0)
    return shown + [d.y for d in dots if low - reach <= d.y <= high + reach]


# -- axes ----------------------------------------------------------------------------------


def _axis(values: Sequence[float], start: float, end: float, *, log: bool) -> Axis:
    low, high = min(values), max(values)
    if log:
        low, high = math.log10(low), math.log10(high)
    pad = 0.07 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - pad, high + pad

    def place(value: float) -> float:
        at = math.log10(value) if log else value
        return start + (at - low) / (high - low) * (end - start)

    return Axis(place, _log_ticks(low, high) if log else _ticks(low, high))


def _ticks(low: float, high: float) -> tuple[float, ...]:
    """About six round values between."""
    raw = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 2.5, 5) if m * power >= raw), 10 * power)
    first = math.ceil(low / step)
    return tuple((first + i) * step for i in range(12) if (first + i) * step <= high)


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    """1, 2, 5 of each decade, or whole decades where there are many."""
    decades = range(math.floor(low), math.floor(high) + 1)
    digits = (1, 2, 5) if len(decades) <= 4 else (1,)
    stride = max(1, len(decades) // 8)
    return tuple(
        digit * 10.0**decade
        for decade in decades[::stride]
        for digit in digits
        if low <= math.log10(digit) + decade <= high
    )


def _frame(report: Report, across: Axis, up: Axis) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    out = []
    for value in up.ticks:
        y = up.place(value)
        out.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        out.append(_text(_LEFT - 8, y + 4, units.metric(value), "end"))
    for value in across.ticks:
        x = across.place(value)
        out.append(f'<line class="grid" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}"/>')
        out.append(_text(x, bottom + 18, units.tick(value, "s"), "middle"))
    out.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>')
    middle = (_LEFT + right) / 2
    name = f"latency p{report.budget.percentile:g} per call"
    out.append(_text(middle, _HEIGHT - 12, name, "middle", "name"))
    better = "higher" if report.survey.task.higher_is_better else "lower"
    title = f"{report.survey.task.metric} on validation ({better} is better)"
    y = (_TOP + bottom) / 2
    out.append(
        f'<text class="name" transform="translate(16 {y:.0f}) rotate(-90)" '
        f'text-anchor="middle">{_safe(title)}</text>'
    )
    return out


def _text(x: float, y: float, text: str, anchor: str, style: str = "tick") -> str:
    return (
        f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_safe(text)}</text>'
    )


def _safe(text: str) -> str:
    """Escaped for HTML, without characters that HTML forbids."""
    return escape(printable(text))


# -- marks ---------------------------------------------------------------------------------


def _limits(across: Axis, up: Axis, limit: float | None, floor: float | None) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    out = []
    if limit is not None:
        x = across.place(limit)
        title = _safe(f"latency limit {units.show(limit, 's')}")
        out.append(
            f'<line class="limit" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}">'
            f"<title>{title}</title></line>"
        )
        within = min(max(x, _LEFT + _HALF_LABEL), right - _HALF_LABEL)
        text = f"limit {units.show(limit, 's')}"  # above the frame, where no mark can be
        out.append(_text(within, _TOP - 8, text, "middle", "note"))
    if floor is not None:
        y = up.place(floor)
        title = _safe(f"allowed quality {units.metric(floor)}")
        out.append(
            f'<line class="limit" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}">'
            f"<title>{title}</title></line>"
        )
        out.append(_text(right - 4, y - 6, f"quality limit {units.metric(floor)}", "end", "note"))
    return out


def _front(report: Report, dots: Sequence[Dot], across: Axis, up: Axis) -> list[str]:
    front = [dot for dot in dots if dot.trial.number in set(report.pareto)]
    if len(front) < 2:
        return []
    front.sort(key=lambda dot: (dot.x, dot.y))
    points = " ".join(f"{across.place(d.x):.1f},{up.place(d.y):.1f}" for d in front)
    return [f'<polyline class="front" points="{points}"/>']


def _mark(report: Report, dot: Dot, across: Axis, up: Axis, runtimes: Sequence[str]) -> str:
    trial = dot.trial
    x, y = across.place(dot.x), min(max(up.place(dot.y), _TOP), _HEIGHT - _BOTTOM)
    within = trial.feasible
    title = f"trial {trial.number}: {brief(trial)}; {'within' if within else 'breaks'} the limits"
    style = f"series-{runtimes.index(trial.deployment.runtime) % SERIES}"
    kind = "dot" if within else "dot hollow"
    names = [
        name for name in ("chosen", "baseline") if _deployment(report, name) == trial.deployment
    ]
    out = ""
    if names:
        out += f'<circle class="ring {style}" cx="{x:.1f}" cy="{y:.1f}" r="11"/>'
        above = y - 17 if y > _TOP + 30 else y + 27
        out += _text(x, above, " = ".join(names), "middle", "callout")
    elif abs(y - up.place(dot.y)) > 1:  # off the scale, so at its edge
        out += _text(x, y + 22 if y == _TOP else y - 12, units.metric(dot.y), "middle", "note")
    out += f'<circle class="{kind} {style}" cx="{x:.1f}" cy="{y:.1f}" r="6"/>'
    return f"<g><title>{_safe(title)}</title>{out}</g>"


def _legend(
    report: Report,
    dots: Sequence[Dot],
    runtimes: Sequence[str],
    limit: float | None,
    floor: float | None,
) -> str:
    def swatch(style: str, text: str) -> str:
        return f'<li><span class="swatch {style}"></span>{_safe(text)}</li>'

    items = [swatch(f"series-{i % SERIES}", name) for i, name in enumerate(runtimes)]
    if any(not dot.trial.feasible for dot in dots):
        items.append(swatch("hollow", "breaks a limit in the search"))
    if len(report.pareto) > 1:
        items.append(swatch("line", "Pareto front"))
    if limit is not None or floor is not None:
        items.append(swatch("line dashed", "limits"))
    return f'<ul class="legend">{"".join(items)}</ul>'
