"""Records: strict in both directions."""

import json
import math
from typing import Annotated, get_args, get_origin

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import FormatError
from autotune.records import (
    budget,
    codec,
    hardware,
    job,
    measurement,
    outlook,
    plan,
    report,
    task,
)
from autotune.records.base import Record

MODULES = (budget, hardware, job, measurement, outlook, plan, report, task)
RECORDS = sorted(
    {
        kind
        for module in MODULES
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Record) and kind is not Record
    },
    key=lambda kind: kind.__name__,
)
UNITS = ("_s", "_j", "_w", "_hz", "_bytes", "_per_s", "_per_sample", "_per_byte")
# ratios, scores and values whose unit stands beside them
UNITLESS = {
    "value", "low", "high", "percentile", "max_drop", "quality", "drop", "drop_upper", "loss",
    "worst_class_recall", "balanced_accuracy", "width", "limit", "estimate", "lower", "upper",
    "confidence", "usable_cores",
    "foreign_load", "lr", "momentum", "beta1", "beta2", "eps", "weight_decay", "step",
    "validation_quality", "min_quality", "recovery_epochs", "certifiable_drop",
    "break_even_inferences",
    "p50", "p95", "p99", "fits", "probability", "bound", "faster", "cheaper", "cost", "decides",
    "error", "price_per_h", "target_quality", "until_quality", "eta", "waiting", "epochs",
    "teacher", "temperature", "warmup", "label_smoothing", "time_left",
    "resumed_epochs", "target_cost", "apart", "kept_epochs", "kept_quality", "neutral",
}  # fmt: skip


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_a_record_is_frozen_keyword_only_and_strict(kind: type[Record]) -> None:
    config = kind.__struct_config__
    assert config.frozen
    assert config.forbid_unknown_fields
    with pytest.raises(TypeError):
        kind("positional")  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_every_float_names_its_unit(kind: type[Record]) -> None:
    for field in msgspec.structs.fields(kind):
        hint = get_args(field.type)[0] if get_origin(field.type) is Annotated else field.type
        if hint in (float, float | None) and field.name not in UNITLESS:
            assert field.name.endswith(UNITS), f"{kind.__name__}.{field.name}"


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_every_record_has_a_json_schema(kind: type[Record]) -> None:
    assert json.dumps(codec.schema(kind))


@given(
    value=st.floats(allow_nan=False, allow_infinity=False),
    unit=st.text(max_size=8),
    low=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
def test_a_leaf_comes_back(value: float, unit: str, low: float | None) -> None:
    leaf = hardware.Leaf(value=value, unit=unit, source="measured", low=low)
    assert codec.decode(codec.encode(leaf), hardware.Leaf) == leaf


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"Leaf\.value"):
        hardware.Leaf(value=bad, unit="s", source="measured")
    with pytest.raises(ValueError, match="finite"):
        measurement.Scores(quality=1.0, rows=2, per_sample=(1.0, bad))


def test_an_unknown_key_is_refused_with_its_name() -> None:
    with pytest.raises(FormatError, match="shoe"):
        codec.decode(b'{"value": 1.0, "unit": "s", "source": "measured", "shoe": 1}', hardware.Leaf)


def test_a_wrong_type_is_refused_with_its_path() -> None:
    with pytest.raises(FormatError, match=r"\$\.value"):
        codec.decode(b'{"value": "1", "unit": "s", "source": "measured"}', hardware.Leaf)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("autotune.plan/2", "newer autotune"),
        ("autotune.report/1", "expected 'autotune.plan/1'"),
        ("", "expected"),
    ],
)
def test_another_schema_is_refused(schema: str, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        codec.decode(json.dumps({"schema": schema}).encode(), plan.Plan, what="plan.json")


def test_not_json_is_refused() -> None:
    with pytest.raises(FormatError, match="not valid JSON"):
        codec.decode(b"{", hardware.Leaf)


def test_published_schemas_are_current() -> None:
    from pathlib import Path

    folder = Path(__file__).parent.parent.parent / "docs" / "schemas"
    for kind in (plan.Plan, report.Report, hardware.Profile):
        name = kind.__name__.lower()
        text = json.dumps(codec.schema(kind), indent=2, sort_keys=True) + "\n"
        assert (folder / f"{name}.json").read_text() == text, "run `make schemas`"
