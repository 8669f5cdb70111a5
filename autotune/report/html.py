"""The HTML page: one file, no script, no network; light and dark.

Markup and style are in `report.html.j2` beside this file.  All text is escaped by Jinja's
autoescape; only the plot, which escapes its own text, is passed on as markup.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

from autotune.records.measurement import Verdict
from autotune.records.report import Report
from autotune.report import view
from autotune.report.describe import describe, quantity
from autotune.report.plain_text import printable
from autotune.report.plot import SERIES, plot
from autotune.report.tables import sections

if TYPE_CHECKING:
    from jinja2 import Template

_VERDICTS = frozenset({"MET", "NOT_MET", "UNDECIDED", "NOT_MEASURED"})
_BEFORE_PLOT = ("verdicts", "distance", "comparison", "why")


def html(report: Report) -> str:
    """The whole report as one self-contained page."""
    from markupsafe import Markup

    return _template().render(
        report=report,
        headline=view.headline(report),
        plan=describe(report.chosen.plan.deployment) if report.chosen is not None else None,
        cards=[_card(verdict, report.budget.percentile) for verdict in report.verdicts],
        sections=sections(report),
        before_plot=_BEFORE_PLOT,
        plot=Markup(plot(report)),
        verdict_names=_VERDICTS,
        series=SERIES,
    )


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        """HTML forbids control characters, escaped or not."""
        return (
            value if isinstance(value, Markup) or not isinstance(value, str) else printable(value)
        )

    loader = PackageLoader("autotune.report", "")
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, finalize=shown)
    page.keep_trailing_newline = True
    return page.get_template("report.html.j2")


def _card(verdict: Verdict, percentile: float) -> dict[str, Any]:
    """A verdict as the reader looks for it: name, estimate, limit and bounds."""
    lines = [f"limit {quantity(verdict.limit, verdict)}"]
    if view.bounds(verdict) != view.NONE:
        level = view.confidence(verdict)
        if level == view.NONE:
            lines.append(f"range {view.bounds(verdict)}")
        else:
            lines.append(f"bounds {view.bounds(verdict)} at {level}, {verdict.samples} samples")
    if verdict.note:
        lines.append(verdict.note)
    return {
        "name": view.label(verdict, percentile),
        "verdict": verdict.verdict,
        "value": quantity(verdict.estimate, verdict),
        "lines": lines,
    }
