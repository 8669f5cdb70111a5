"""A report as text: terminal summary and Markdown; CSV and HTML from their own files.

    report.json --decode--> Report --+-- summary   the terminal, at most 100 columns
                                     +-- markdown  report.md
                                     +-- html      report.html, one file, works offline
                                     +-- csv       trials.csv, SI units in the column names

Rendering never raises on a valid report: what is missing is shown as missing.
"""

import re

from autotune import units
from autotune.records.measurement import Verdict
from autotune.records.report import Report
from autotune.report import view as view
from autotune.report.describe import describe, quantity
from autotune.report.html import html
from autotune.report.plain_text import one_line, wrap
from autotune.report.tables import sections
from autotune.report.trial_table import csv

__all__ = ["csv", "files", "html", "markdown", "summary", "verdicts"]

WIDTH = 100
_MARKS = re.compile(r"([\\`*\[\]|#~!$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


def files(report: Report) -> dict[str, str]:
    """What is rendered beside report.json, by file name."""
    return {"report.md": markdown(report), "trials.csv": csv(report), "report.html": html(report)}


# -- terminal ------------------------------------------------------------------------------


def summary(report: Report, folder: str | None = None) -> str:
    """Plain text, no colours.  ``folder`` names the report folder in the next commands."""
    percentile = report.budget.percentile
    blocks = [[one_line(view.headline(report))]]
    blocks.append([line for v in report.verdicts for line in _verdict_lines(v, percentile)])
    blocks.append(_distance_lines(report))
    blocks.append(_comparison_lines(report))
    why = [line for text in report.why.text for line in _wrap(text, "  ")]
    blocks.append(["why", *why] if why else [])
    notes = [line for text in report.messages for line in _wrap(text, "  ")]
    blocks.append(["notes", *notes] if notes else [])
    if report.status == "interrupted" and folder:
        blocks.append([f"resume    autotune run MODEL.py --resume {folder}"])
    blocks.append(_next_lines(report, folder))
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def verdicts(found: tuple[Verdict, ...], percentile: float = 95.0) -> str:
    """The verdict lines alone."""
    return "\n".join(line for v in found for line in _verdict_lines(v, percentile))


def _wrap(text: str, indent: str, first: str | None = None) -> list[str]:
    whole = view.ONE_AT_A_TIME  # never broken over lines
    text = text.replace(whole, whole.replace(" ", "\u00a0"))
    lines = wrap(text, WIDTH, indent, first, break_long_words=True)
    return [line.replace("\u00a0", " ") for line in lines]


def _verdict_lines(verdict: Verdict, percentile: float) -> list[str]:
    name = view.label(verdict, percentile)
    text = f"{name} {quantity(verdict.estimate, verdict)}"
    if view.bounds(verdict) != view.NONE:
        level = view.confidence(verdict)
        text += f" ({view.bounds(verdict)}{'' if level == view.NONE else f' at {level}'})"
    text += f", limit {quantity(verdict.limit, verdict)}"
    if verdict.samples > 1:
        text += f", {verdict.samples} {_SAMPLES.get(verdict.name, 'launches')}"
    if verdict.name in ("energy", "train_energy"):
        text += f", {verdict.source}"
    if verdict.note:
        text += f"; {verdict.note}"
    if verdict.name == "latency" and "requests per second" in verdict.source:
        text += f"; {verdict.source}"
    elif verdict.name == "latency":
        text += f" {view.ONE_AT_A_TIME}"
    return _wrap(text, " " * 14, f"{verdict.verdict:<14}")


_SAMPLES = {"latency": "calls", "quality": "rows"}


def _distance_lines(report: Report) -> list[str]:
    section = view.distance(report)
    if not section.lines:
        return []
    return [section.title.lower(), *(line for t in section.lines for line in _wrap(t, "  "))]


def _comparison_lines(report: Report) -> list[str]:
    """Baseline, best lossless and chosen side by side, the figures that the limits are about."""
    named = view.plans(report)
    if not named:
        return []
    percentile = report.budget.percentile
    columns = [dict(view.figures(plan, percentile)) for _, plan in named]
    wanted = (
        f"p{percentile:g} latency",
        f"p{percentile:g} 95 % interval",
        f"p{percentile:g} response",
        "quality (test)",
        "quality 95 % interval",
        "balanced accuracy",
        "worst class recall",
        "energy per sample",
        "energy, modelled",
        "throughput",
        "memory",
        "memory of the GPU",
        "size on disk",
        "load",
        "first call",
    )
    lines = [_columns("", [name for name, _ in named])]
    for key in wanted:
        cells = [column.get(key, view.NONE) for column in columns]
        if any(cell not in (view.NONE, units.NOT_MEASURED) for cell in cells) or key in _ALWAYS:
            lines += _row(key, cells)
    for name, plan in named:
        lines += _wrap(f"{name}: {describe(plan.plan.deployment)}", "    ", "  ")
    if report.chosen is not None and report.chosen.plan.recipe is not None:
        made = report.chosen.plan
        lines += _wrap(f"recipe: {view.recipe(made.recipe)}, {made.epochs} epochs", "    ", "  ")
    return lines


_ALWAYS = ("energy per sample", "quality (test)")
_NAME, _CELLS = 24, 72  # columns of the terminal


def _row(name: str, cells: list[str]) -> list[str]:
    """A row of the comparison; a cell too wide for its column goes on below."""
    parts = [wrap(cell, _width(cells) - 1, break_long_words=True) or [""] for cell in cells]
    height = max(map(len, parts))
    return [
        _columns(name if i == 0 else "", [p[i] if i < len(p) else "" for p in parts])
        for i in range(height)
    ]


def _columns(name: str, cells: list[str]) -> str:
    width = _width(cells)
    return f"{name:<{_NAME}} {''.join(f'{cell:<{width}}' for cell in cells)}".rstrip()


def _width(cells: list[str]) -> int:
    return _CELLS // max(3, len(cells))


def _next_lines(report: Report, folder: str | None) -> list[str]:
    where = folder or "DIR"
    lines = []
    if folder:
        lines.append(f"report    {folder}/report.html")
    if report.artifact is not None:
        lines.append(f"artifact  {where}/{one_line(report.artifact.folder)}")
    if report.chosen is not None and folder:
        lines.append(f"plan      {folder}/plan.json")
    if report.artifact is not None:
        lines.append(f"next      autotune verify {where}")
    if report.chosen is not None:
        lines.append(f"          autotune execute {where}/plan.json MODEL.py")
    return lines


# -- Markdown ------------------------------------------------------------------------------


def markdown(report: Report) -> str:
    """GitHub-flavoured Markdown; all text of the report is escaped."""
    out = [f"# autotune: {_mark(view.headline(report))}"]
    out.append(f"{_mark(report.created_utc)}, goal {_mark(report.goal)}, exit {report.exit_code}")
    for section in sections(report):
        out.append(f"## {_mark(section.title)}")
        if section.lines:
            out.append("\n".join(f"- {_mark(line)}" for line in section.lines))
        for table in section.tables:
            if table.rows:
                if table.caption:
                    out.append(f"### {_mark(table.caption)}")
                out.append(_markdown_table(table))
    return "\n\n".join(out) + "\n"


def _mark(text: str) -> str:
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKS.sub(r"\\\1", text)


def _markdown_table(table: view.Table) -> str:
    lines = [table.head, tuple("---" for _ in table.head), *table.rows]
    marked = [lines[0], *lines[2:]]
    cells = [[_mark(cell) or " " for cell in line] for line in marked]
    body = [f"| {' | '.join(row)} |" for row in cells]
    body.insert(1, f"|{'|'.join('---' for _ in table.head)}|")
    return "\n".join(body)
