"""Quantities: what a person types is what a person reads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune import units
from autotune.errors import QuantityError

SIZES = st.floats(min_value=1e-8, max_value=1e8)


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("5ms", "s", 0.005),
        ("1us", "s", 1e-6),
        ("1µs", "s", 1e-6),
        ("10min", "s", 600.0),
        ("1.5h", "s", 5400.0),
        (" 4.87 ms ", "s", 0.00487),
        (".5s", "s", 0.5),
        ("20mJ", "J", 0.02),
        ("2kJ", "J", 2000.0),
        ("1kWh", "J", 3.6e6),
        ("2e3J", "J", 2000.0),
        ("1.5GB", "B", 1.5e9),
        ("200MB", "B", 2e8),
        ("1KiB", "B", 1024.0),
        ("65W", "W", 65.0),
    ],
)
def test_parse(text: str, unit: str, value: float) -> None:
    assert units.parse(text, unit) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("", "s"),
        ("fast", "s"),
        ("5", "s"),
        ("5mJ", "s"),
        ("5MS", "s"),
        ("20", "J"),
        ("20ms", "J"),
        ("-5ms", "s"),
        ("0ms", "s"),
        ("1e999s", "s"),
        ("nan s", "s"),
        ("5ms 3us", "s"),
        ("0.6x", "s"),
    ],
)
def test_a_wrong_quantity_names_the_text_and_the_remedy(text: str, unit: str) -> None:
    with pytest.raises(QuantityError) as caught:
        units.parse(text, unit)
    assert repr(text) in str(caught.value)
    assert "such as" in str(caught.value)


def test_parse_limit() -> None:
    relative = units.parse_limit("0.6x", "s")
    assert (relative.value, relative.relative) == (0.6, True)
    absolute = units.parse_limit("5ms", "s")
    assert (absolute.value, absolute.relative) == (0.005, False)


@pytest.mark.parametrize("text", ["0x", "-1x", "x", "1y", "1e999x"])
def test_a_wrong_limit_is_refused(text: str) -> None:
    with pytest.raises(QuantityError):
        units.parse_limit(text, "s")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "s", "not measured"),
        (0.00487, "s", "4.87 ms"),
        (0.0009996, "s", "1.00 ms"),
        (600, "s", "10.0 min"),
        (7200, "s", "2.00 h"),
        (0.0, "s", "0 s"),
        (-0.0012, "s", "-1.20 ms"),
        (0.02, "J", "20.0 mJ"),
        (999.9, "J", "1.00 kJ"),
        (150e6, "B", "150 MB"),
        (12, "B", "12 B"),
        (65, "W", "65.0 W"),
        (2.1e6, "FLOP", "2.10 MFLOP"),
        (0.97, "", "0.970"),
        (3.25, "widgets", "3.25 widgets"),
        (1.7976931348623157e308, "", "1.80e+308"),
    ],
)
def test_show(value: float | None, unit: str, text: str) -> None:
    assert units.show(value, unit) == text


def test_small_helpers() -> None:
    assert units.span(0.0048, 0.00495, "s") == "4.80 to 4.95 ms"
    assert units.span(None, 0.00495, "s") == "? to 4.95 ms"
    assert units.span(None, None, "s") == "not measured"
    assert units.span(0.01, 0.0123, "") == "0.01 to 0.0123"
    assert units.metric(0.97330) == "0.9733"
    assert units.metric(None) == "not measured"
    assert units.metric(0.0022) == "0.0022"
    assert units.percent(0.995) == "99.5 %"
    assert units.percent(-1e-9) == "0 %"
    assert units.per_second(1234.5) == "1234/s"
    assert units.per_second(12.345) == "12.3/s"
    assert units.per_second(None) == "not measured"
    assert units.tick(0.002, "s") == "2 ms"


@given(SIZES, st.sampled_from(["s", "J", "B", "W"]))
def test_what_is_shown_parses_to_within_rounding(value: float, unit: str) -> None:
    text = units.show(value, unit)
    if unit == "B" and value < 1000:  # whole bytes
        return
    if unit == "W" and value < 1e-6:  # below the smallest prefix
        return
    if "e" in text:
        return
    assert units.parse(text, unit) == pytest.approx(value, rel=0.006)


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["s", "J", "B", "", "/s"]))
def test_show_never_raises(value: float, unit: str) -> None:
    for text in (
        units.show(value, unit),
        units.span(value, value, unit),
        units.metric(value),
        units.per_second(value),
        units.tick(value, unit),
        units.percent(value),
    ):
        assert text
