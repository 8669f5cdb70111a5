"""Rendering: never raises, escapes everything, and keeps the golden page."""

import csv as csv_file
import functools
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from autotune import units
from autotune.records import codec
from autotune.records.measurement import Verdict
from autotune.records.report import Report
from autotune.report import text as report_text
from autotune.report import trial_table
from autotune.report.plot import plot
from autotune.report.view import plans

GOLDEN = Path(__file__).parents[1] / "golden"
MANY = settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example],
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),  # to shrink a report takes minutes
)
replace = msgspec.structs.replace


@pytest.fixture(scope="module")
def report() -> Report:
    return codec.decode((GOLDEN / "report.json").read_bytes(), Report)


def test_golden_markdown(report: Report) -> None:
    """To renew it after a wanted change: write `text.markdown(report)` to the file."""
    assert report_text.markdown(report) == (GOLDEN / "report.md").read_text(encoding="utf-8")


def test_golden_summary(report: Report) -> None:
    assert report_text.summary(report) == (GOLDEN / "summary.txt").read_text(encoding="utf-8")


def test_size_load_and_cold_start_stand_in_every_report(report: Report) -> None:
    assert report.chosen is not None
    shown = [
        ("size on disk", units.show(report.chosen.size_bytes, "B")),
        ("load", units.show(report.chosen.load_s, "s")),
        ("first call", units.show(report.chosen.first_call_s, "s")),
    ]
    for text in (
        report_text.summary(report),
        report_text.markdown(report),
        report_text.html(report),
    ):
        assert all(name in text and value in text for name, value in shown)


class Page(HTMLParser):
    """Collects tags and outside references; notices tags left open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "line", "circle", "path", "polyline"):
            self.open.append(tag)
        self.outside += [v for k, v in attrs if k in ("src", "href") and v]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.outside += [v for k, v in attrs if k in ("src", "href") and v]

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "circle", "path", "polyline"):
            assert self.open.pop() == tag


def parsed(page: str) -> Page:
    parser = Page()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def test_html_is_one_file_and_well_formed(report: Report) -> None:
    page = report_text.html(report)
    found = parsed(page)
    assert found.outside == []
    assert "script" not in found.tags
    assert "http" not in page
    assert "prefers-color-scheme: dark" in page
    for text in ("NOT MEASURED", "baseline", "best lossless", "chosen", "Pareto front", "ddp"):
        assert text in page


def test_a_plan_has_one_column_alone(report: Report) -> None:
    assert [name for name, _ in plans(report)] == ["baseline", "best lossless", "chosen"]
    for one in (report.chosen, report.baseline):
        same = msgspec.structs.replace(report, lossless=one)
        assert [name for name, _ in plans(same)] == ["baseline", "chosen"]


def test_plot(report: Report) -> None:
    drawn = plot(report)
    svg = drawn[drawn.index("<svg") : drawn.index("</svg>") + 6]
    root = ElementTree.fromstring(svg)
    circles = [e for e in root.iter("circle") if "dot" in e.get("class", "").split()]
    assert len(circles) == sum(t.state == "complete" for t in report.deploy_trials)
    assert len([e for e in root.iter("line") if e.get("class") == "limit"]) == 2
    assert any(e.text and e.text.startswith("trial 0:") for e in root.iter("title"))
    assert plot(replace(report, deploy_trials=())) == ""


def test_one_ruined_model_does_not_flatten_the_plot(report: Report) -> None:
    """It stands at the edge, with its value."""
    complete = next(t for t in report.deploy_trials if t.state == "complete")
    ruined = replace(
        complete,
        number=99,
        quality=-455.0,
        constraints={"quality": 9.0},
        deployment=replace(complete.deployment, runtime="openvino", threads=7),
    )
    drawn = plot(replace(report, deploy_trials=(*report.deploy_trials, ruined)))
    ticks = re.findall(r'class="tick"[^>]*>([^<]+)<', drawn)
    assert ">-455<" in drawn
    assert ticks
    assert not [tick for tick in ticks if tick.startswith("-")], "no axis down to it"
    assert ">-455<" not in plot(report)


def test_summary_shape(report: Report) -> None:
    text = report_text.summary(report, "reports/x")
    lines = text.splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert "\x1b" not in text
    assert lines[2].startswith("MET           latency p95")
    first_block = text.split("\n\n")[1]
    assert "(one request at a time, warm)\nNOT_MEASURED" in first_block
    assert "energy, modelled" in text
    assert "not measured" in text
    assert "autotune verify reports/x" in text
    assert "0.951 to 0.9845" in text


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.0])
def test_other_percentiles(report: Report, percentile: float) -> None:
    assert report.chosen is not None
    assert report.chosen.latency_s is not None
    latency = replace(report.chosen.latency_s, percentile=percentile, value=0.000123)
    other = replace(
        report,
        budget=replace(report.budget, percentile=percentile),
        chosen=replace(report.chosen, latency_s=latency),
    )
    text = report_text.summary(other)
    assert f"latency p{percentile:g}" in text
    assert f"p{percentile:g} 95 % interval" in text
    if percentile == 90.0:
        assert "123 us" in text
    assert f"p{percentile:g}" in report_text.markdown(other)
    parsed(report_text.html(other))


def test_distance_when_not_met(report: Report) -> None:
    missed = Verdict(
        name="latency",
        unit="s",
        limit=1e-6,
        estimate=2.5e-4,
        lower=2e-4,
        upper=3e-4,
        confidence=0.995,
        samples=312,
        verdict="NOT_MET",
        source="p95",
    )
    text = report_text.summary(replace(report, verdicts=(missed,), exit_code=3))
    assert text.splitlines()[2].startswith("NOT_MET")
    assert "The least-violating plan: int8 static" in text
    assert "250 us against 1.00 us, 250x the limit" in text


def test_interrupted_and_empty(report: Report) -> None:
    bare = replace(
        report,
        status="interrupted",
        train_trials=(),
        deploy_trials=(),
        train_baseline=None,
        baseline=None,
        lossless=None,
        chosen=None,
        verdicts=(),
        artifact=None,
    )
    assert "interrupted" in report_text.summary(bare)
    assert "No verdict was reached" in report_text.markdown(bare)
    parsed(report_text.html(bare))
    assert len(report_text.csv(bare).splitlines()) == 1


def test_csv(report: Report) -> None:
    rows = list(csv_file.DictReader(io.StringIO(report_text.csv(report))))
    assert len(rows) == len(report.train_trials) + len(report.deploy_trials)
    assert {row["kind"] for row in rows} == {"train", "deploy"}
    deploy = next(row for row in rows if row["kind"] == "deploy")
    assert float(deploy["latency_p95_s"]) == pytest.approx(0.00109984)
    assert deploy["energy_j_per_sample"] == ""
    assert float(deploy["energy_modelled_j_per_sample"]) > 0
    assert any(row["failure_kind"] == "unsupported" for row in rows)


def test_the_table_of_trials_has_typed_columns(report: Report) -> None:
    table = trial_table.trials(report)
    assert len(table) == len(report.train_trials) + len(report.deploy_trials)
    types = {str(name): str(kind) for name, kind in table.dtypes.items()}
    assert (types["launches"], types["quality"]) == ("Int64", "Float64")
    best = table[table["kind"] == "deploy"].nsmallest(1, "latency_p95_s")
    complete = [t.latency_s.p95 for t in report.deploy_trials if t.latency_s is not None]
    assert best["latency_p95_s"].item() == min(p for p in complete if p is not None)


NASTY = "<script>alert(1)</script>|*_`&\n\x00=cmd\"'[x](y)"


def test_text_is_escaped(report: Report) -> None:
    failed = next(t for t in report.deploy_trials if t.failure is not None)
    assert failed.failure is not None
    hostile = replace(
        report,
        task=NASTY,
        messages=(NASTY,),
        deploy_trials=(replace(failed, failure=replace(failed.failure, message=NASTY)),),
        why=replace(report.why, text=(NASTY,)),
    )
    page = report_text.html(hostile)
    assert "script" not in parsed(page).tags
    assert "\x00" not in page
    text = report_text.markdown(hostile)
    assert "<script" not in text
    assert "[x](y)" not in text.replace("\\[", "").replace("\\]", "")
    for line in text.splitlines():
        if line.startswith("|"):
            cells = line.replace("\\|", "").count("|")
            assert cells >= 3
    assert len(list(csv_file.reader(io.StringIO(report_text.csv(hostile))))) == 6
    assert "\x00" not in report_text.summary(hostile)


TEXT = st.text(max_size=12) | st.just(NASTY)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)


@functools.cache
def record(kind: Any) -> st.SearchStrategy[Any]:
    """A strategy from a record's annotations."""
    parts = {
        field.name: strategy(field.type)
        for field in msgspec.inspect.type_info(kind).fields
        if field.name != "schema"
    }
    return st.fixed_dictionaries(parts).map(lambda values: kind(**values))


def strategy(hint: Any) -> st.SearchStrategy[Any]:
    """A strategy for one msgspec type."""
    kinds = msgspec.inspect
    match getattr(hint, "type", hint):  # what a field says of itself is wrapped around its type
        case kinds.UnionType(types=types):
            return st.one_of(*map(strategy, types))
        case kinds.NoneType():
            return st.none()
        case kinds.FloatType():
            return NUMBER
        case kinds.IntType():
            return st.integers(-3, 10**12)
        case kinds.BoolType():
            return st.booleans()
        case kinds.StrType():
            return TEXT
        case kinds.LiteralType(values=values):
            return st.sampled_from(values)
        case kinds.VarTupleType(item_type=item):
            return st.lists(strategy(item), max_size=2).map(tuple)
        case kinds.TupleType(item_types=items):
            return st.tuples(*map(strategy, items))
        case kinds.DictType(key_type=key, value_type=value):
            return st.dictionaries(strategy(key), strategy(value), max_size=2)
        case kinds.StructType(cls=cls):
            return record(cls)
    raise AssertionError(hint)


@MANY
@given(st.data())
def test_rendering_never_raises(data: st.DataObject) -> None:
    report = data.draw(record(Report))
    text = report_text.summary(report, "reports/x")
    assert all(len(line) <= 100 for line in text.splitlines())
    assert report_text.markdown(report)
    parsed(report_text.html(report))
    rows = list(csv_file.reader(io.StringIO(report_text.csv(report))))
    assert len(rows) == 1 + len(report.train_trials) + len(report.deploy_trials)


@MANY
@given(st.data())
def test_rendering_parts_missing(data: st.DataObject) -> None:
    """The golden report with any of its parts taken away."""
    report = codec.decode((GOLDEN / "report.json").read_bytes(), Report)
    empty = {"baseline": None, "lossless": None, "chosen": None, "artifact": None,
             "train_baseline": None, "verdicts": (), "deploy_trials": (), "train_trials": (),
             "pareto": (), "energy_sources": (), "software": {}, "messages": ()}  # fmt: skip
    gone = data.draw(st.sets(st.sampled_from(sorted(empty))))
    less = replace(report, **{name: empty[name] for name in gone})
    if less.deploy_trials:
        bare = {"latency_s": None, "quality": None, "memory_bytes": None}
        lost = data.draw(st.sets(st.sampled_from(sorted(bare))))
        change = {name: bare[name] for name in lost}
        less = replace(less, deploy_trials=tuple(replace(t, **change) for t in less.deploy_trials))
    for text in (report_text.summary(less), report_text.markdown(less), report_text.csv(less)):
        assert text
    parsed(report_text.html(less))
