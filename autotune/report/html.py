"""The HTML page: one file, no script, no network; light and dark; every text escaped."""

from collections.abc import Sequence

from autotune.records.measurement import Verdict
from autotune.records.report import Report
from autotune.report import view as view
from autotune.report.describe import describe, quantity
from autotune.report.plot import plot, safe
from autotune.report.tables import sections

_STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b1f27; --soft: #5c6675; --line: #dfe3e9;
  --accent: #2459c7; --head: #f0f2f6;
  --met: #17703f; --met-bg: #ddf3e5; --not: #a52222; --not-bg: #fbe0de;
  --open: #7c5300; --open-bg: #fcefcf; --none: #4a5361; --none-bg: #e6e9ee;
  --series-0: #2459c7; --series-1: #c2410c; --series-2: #0f8a6d;
  --series-3: #8b3fc0; --series-4: #b0236a; --series-5: #6b7280;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12151a; --card: #1a1f27; --ink: #e7eaf0; --soft: #9aa5b5; --line: #2d3541;
    --accent: #86aaff; --head: #222934;
    --met: #7fdca4; --met-bg: #153523; --not: #ff9d96; --not-bg: #451d1d;
    --open: #f1c667; --open-bg: #3f3113; --none: #b7c0cd; --none-bg: #2b323d;
    --series-0: #86aaff; --series-1: #ff9d5c; --series-2: #4fd1ad;
    --series-3: #c795ef; --series-4: #f27fb2; --series-5: #a3adba;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
header { margin-bottom: 20px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 10px; }
h3 { font-size: 14px; margin: 18px 0 6px; color: var(--soft); font-weight: 600; }
.sub, .note-text { color: var(--soft); margin: 0; overflow-wrap: anywhere; }
section, details { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 18px 20px; margin: 14px 0; }
summary { cursor: pointer; font-size: 16px; font-weight: 600; }
details[open] summary { margin-bottom: 12px; }
ul.lines { margin: 0 0 12px; padding-left: 18px; }
ul.lines li { overflow-wrap: anywhere; margin: 3px 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 12px 7px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td { max-width: 430px; overflow-wrap: anywhere; }
tbody tr:last-child td, tbody tr:last-child th { border-bottom: 0; }
thead th { color: var(--soft); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 500; color: var(--soft); white-space: nowrap; }
td.long { min-width: 230px; }
td.short { white-space: nowrap; overflow-wrap: normal; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); gap: 12px; }
.card { border: 1px solid var(--line); border-radius: 10px; background: var(--card);
  padding: 14px 16px; }
.card .name { color: var(--soft); display: flex; justify-content: space-between; gap: 8px;
  align-items: center; }
.card .value { font-size: 24px; font-weight: 600; line-height: 1.3; margin-top: 4px; }
.card p { margin: 2px 0 0; color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
.badge { display: inline-block; border-radius: 6px; padding: 1px 8px; font-size: 12px;
  font-weight: 650; letter-spacing: .02em; white-space: nowrap; }
.MET { color: var(--met); background: var(--met-bg); }
.NOT_MET { color: var(--not); background: var(--not-bg); }
.UNDECIDED { color: var(--open); background: var(--open-bg); }
.NOT_MEASURED { color: var(--none); background: var(--none-bg); }
figure { margin: 0; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font-size: 12px; }
svg .name { fill: var(--ink); font-size: 13px; }
svg .callout { fill: var(--ink); font-size: 13px; font-weight: 650; paint-order: stroke;
  stroke: var(--card); stroke-width: 4px; }
svg .note { fill: var(--not); paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .axis { stroke: var(--soft); fill: none; stroke-width: 1; }
svg .limit { stroke: var(--not); stroke-width: 1.5; stroke-dasharray: 6 5; }
svg .front { stroke: var(--soft); fill: none; stroke-width: 1.5; }
svg .dot { stroke: var(--card); stroke-width: 1.5; fill: currentColor; }
svg .hollow { fill: var(--card); stroke: currentColor; stroke-width: 2; }
svg .ring { fill: none; stroke: currentColor; stroke-width: 2; }
svg g:hover .dot { stroke: var(--ink); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 6px 20px; margin: 10px 0 0;
  padding: 0 0 0 8px; color: var(--soft); font-size: 13px; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 50%;
  background: currentColor; margin-right: 7px; }
.swatch.hollow { background: none; border: 2px solid var(--soft); }
.swatch.line { height: 0; width: 20px; border-radius: 0; background: none;
  border-top: 2px solid var(--soft); vertical-align: middle; }
.swatch.dashed { border-top: 2px dashed var(--not); }
footer { color: var(--soft); font-size: 13px; margin-top: 20px; }
""" + "".join(f".series-{i} {{ color: var(--series-{i}); }}\n" for i in range(6))

_VERDICTS = frozenset({"MET", "NOT_MET", "UNDECIDED", "NOT_MEASURED"})
_BEFORE_PLOT = ("verdicts", "distance", "comparison", "why")
_SHORT = 26


def html(report: Report) -> str:
    """The whole report as one self-contained page."""
    found = sections(report)
    first = [s for s in found if s.key in _BEFORE_PLOT]
    rest = [s for s in found if s.key not in _BEFORE_PLOT]
    parts = [*map(_section, first), _figure(report), *map(_section, rest)]
    title = f"autotune: {report.task}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{safe(title)}</title><style>{_STYLE}</style></head>\n<body><main>"
        f"{_header(report)}\n{_cards(report)}\n{''.join(parts)}"
        f"<footer>{safe(report.schema)}. What was not measured is said so, never 0. "
        "report.json is the truth that this page renders.</footer></main></body></html>\n"
    )


def _header(report: Report) -> str:
    lines = [f"<h1>{safe(view.headline(report))}</h1>"]
    if report.chosen is not None:
        plan = safe(describe(report.chosen.plan.deployment))
        lines.append(f'<p class="sub"><strong>{plan}</strong></p>')
    about = f"{report.created_utc}, goal {report.goal}, on {report.profile.name}, exit code "
    lines.append(f'<p class="sub">{safe(about)}{report.exit_code}</p>')
    return f"<header>{''.join(lines)}</header>"


def _cards(report: Report) -> str:
    """One card for each verdict: what a reader came for."""
    cards = [_card(verdict, report.budget.percentile) for verdict in report.verdicts]
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _card(verdict: Verdict, percentile: float) -> str:
    lines = [f"limit {quantity(verdict.limit, verdict)}"]
    if view.bounds(verdict) != view.NONE:
        level = view.confidence(verdict)
        if level == view.NONE:
            lines.append(f"range {view.bounds(verdict)}")
        else:
            lines.append(f"bounds {view.bounds(verdict)} at {level}, {verdict.samples} samples")
    if verdict.note:
        lines.append(verdict.note)
    name = safe(view.label(verdict, percentile))
    body = "".join(f"<p>{safe(line)}</p>" for line in lines)
    return (
        f'<div class="card"><div class="name"><span>{name}</span>{_badge(verdict.verdict)}</div>'
        f'<div class="value">{safe(quantity(verdict.estimate, verdict))}</div>{body}</div>'
    )


def _badge(name: str) -> str:
    return f'<span class="badge {name}">{name.replace("_", " ")}</span>'


def _figure(report: Report) -> str:
    drawn = plot(report)
    return (
        f"<section><h2>Latency and quality of what was tried</h2>{drawn}</section>" if drawn else ""
    )


def _section(section: view.Section) -> str:
    body = ""
    if section.lines:
        items = "".join(f"<li>{safe(line)}</li>" for line in section.lines)
        body += f'<ul class="lines">{items}</ul>'
    for table in section.tables:
        if table.rows:
            body += f"<h3>{safe(table.caption)}</h3>" if table.caption else ""
            body += _table(table)
    title = safe(section.title)
    if section.fold:
        return f'<details id="{section.key}"><summary>{title}</summary>{body}</details>\n'
    return f'<section id="{section.key}"><h2>{title}</h2>{body}</section>\n'


def _table(table: view.Table) -> str:
    head = ""
    if any(table.head):
        cells = "".join(f'<th scope="col">{safe(name)}</th>' for name in table.head)
        head = f"<thead><tr>{cells}</tr></thead>"
    rows = "".join(f"<tr>{_cells(row)}</tr>" for row in table.rows)
    return f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>'


def _cells(row: Sequence[str]) -> str:
    out = [f'<th scope="row">{safe(row[0])}</th>']
    for cell in row[1:]:
        if cell in _VERDICTS:
            out.append(f"<td>{_badge(cell)}</td>")
        else:
            style = "short" if len(cell) <= _SHORT else "long"
            out.append(f'<td class="{style}">{safe(cell)}</td>')
    return "".join(out)
