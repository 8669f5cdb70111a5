"""Converts between quantities as people write them and SI numbers.

    "5ms" --parse--> 0.005 --show--> "5.00 ms"

Energy and power are case-sensitive (``mJ`` is not ``MJ``); bytes take decimal (``MB``) and
binary (``MiB``) prefixes.  Knows nothing of currencies, or of bits.
"""

import math
import re

from autotune.errors import QuantityError
from autotune.records.budget import Limit

_SMALL = {"n": 1e-9, "u": 1e-6, "µ": 1e-6, "μ": 1e-6, "m": 1e-3, "": 1.0}
_LARGE = {"k": 1e3, "M": 1e6, "G": 1e9}
_TIME = {f"{prefix}s": factor for prefix, factor in _SMALL.items()} | {
    "sec": 1.0,
    "min": 60.0,
    "h": 3600.0,
}
_BYTES = {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12} | {
    f"{prefix}iB": 1024.0**power for power, prefix in enumerate("KMGT", start=1)
}
_SUFFIXES: dict[str, dict[str, float]] = {
    "s": _TIME,
    "B": _BYTES,
    "J": {f"{p}J": f for p, f in (_SMALL | _LARGE).items()} | {"Wh": 3.6e3, "kWh": 3.6e6},
    "W": {f"{p}W": f for p, f in (_SMALL | _LARGE).items()},
}
_EXAMPLES = {
    "s": "5ms, 0.2s or 10min",
    "B": "200MB, 1.5GB or 512MiB",
    "J": "20mJ, 1.5J or 2kJ",
    "W": "500mW, 65W or 1.2kW",
}
_WHAT = {"s": "a time", "B": "a size in bytes", "J": "an energy", "W": "a power"}
_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*?)\s*", re.DOTALL)

# What `show` uses, largest first: (from this value on, divisor, name).
_SCALES: dict[str, tuple[tuple[float, str], ...]] = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")),
    "J": ((1e6, "MJ"), (1e3, "kJ"), (1.0, "J"), (1e-3, "mJ"), (1e-6, "uJ"), (1e-9, "nJ")),
    "W": ((1e6, "MW"), (1e3, "kW"), (1.0, "W"), (1e-3, "mW"), (1e-6, "uW")),
    "FLOP": ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP"), (1.0, "FLOP")),
    "FLOP/s": ((1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1e6, "MFLOP/s"), (1.0, "FLOP/s")),
    "op/s": ((1e12, "Top/s"), (1e9, "Gop/s"), (1e6, "Mop/s"), (1.0, "op/s")),
    "Hz": ((1e9, "GHz"), (1e6, "MHz"), (1.0, "Hz")),
    "B/s": ((1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s"), (1.0, "B/s")),
    "B": ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
}
NOT_MEASURED = "not measured"


def parse(text: str, unit: str) -> float:
    """The SI value of a quantity such as ``5ms`` (``unit`` is one of s, J, B, W).

    Raises:
        QuantityError: no number, no unit, another unit, or not greater than 0.
    """
    suffixes = _SUFFIXES[unit]
    hint = f"write {_WHAT[unit]} such as {_EXAMPLES[unit]}"
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise QuantityError(f"{text!r} is not a number with a unit: {hint}")
    number, suffix = match.groups()
    if not suffix:
        raise QuantityError(f"{text!r} has no unit: {hint}")
    if suffix not in suffixes:
        raise QuantityError(f"{text!r} has the unit {suffix!r}, which is not {_WHAT[unit]}: {hint}")
    value = float(number) * suffixes[suffix]
    if not math.isfinite(value) or value <= 0:
        raise QuantityError(f"{text!r} is not a finite quantity greater than 0: {hint}")
    return value


def parse_limit(text: str, unit: str) -> Limit:
    """A limit: a quantity, or ``0.6x`` for a factor of the deploy baseline.

    Raises:
        QuantityError: as `parse`; or a factor that is not a number greater than 0.
    """
    match = _NUMBER.fullmatch(text)
    if match is None or match.group(2) not in ("x", "X", "×"):
        return Limit(value=parse(text, unit))
    factor = float(match.group(1))
    if not math.isfinite(factor) or factor <= 0:
        raise QuantityError(
            f"{text!r} is not a factor greater than 0: write 0.6x for 60 % of the baseline"
        )
    return Limit(value=factor, relative=True)


def _significant(value: float, digits: int) -> str:
    """``digits`` significant digits, no exponent between 1e-4 and 1e6."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    if not math.isfinite(rounded):
        return f"{value:.{digits - 1}e}"
    exponent = math.floor(math.log10(abs(rounded)))
    if not -5 < exponent < 6:
        return f"{rounded:.{digits - 1}e}"
    return f"{rounded:.{max(0, digits - 1 - exponent)}f}"


def _scale(value: float, unit: str) -> tuple[float, str]:
    """Divisor and name for values of about this size."""
    size = abs(float(f"{value:.2e}"))  # rounded first, so that 999.9 us is 1.00 ms
    if unit == "s" and size >= 100:
        return (3600.0, "h") if size >= 5400 else (60.0, "min")
    scales = _SCALES.get(unit)
    if scales is None:
        return 1.0, unit
    if size == 0:
        return 1.0, unit
    return next(((f, name) for f, name in scales if size >= f), scales[-1])


def show(value: float | None, unit: str) -> str:
    """Three significant digits and the right prefix: ``4.87 ms``; None is "not measured".

    Any unit other than s, J, B and W is written as it stands (``""`` for none).
    """
    if value is None:
        return NOT_MEASURED
    divisor, name = _scale(value, unit)
    scaled = value / divisor
    text = f"{scaled:.0f}" if name == "B" else _significant(scaled, 3)
    return f"{text}{'' if name.startswith('/') or not name else ' '}{name}"


def tick(value: float, unit: str) -> str:
    """An axis label: as `show`, without trailing zeros (``2 ms``)."""
    number, _, name = show(value, unit).partition(" ")
    return f"{_trimmed(number)} {name}".strip()


def _trimmed(number: str) -> str:
    """Without the zeros that end a fraction."""
    if "." not in number or "e" in number:
        return number
    return number.rstrip("0").rstrip(".")


def span(low: float | None, high: float | None, unit: str) -> str:
    """An interval in one prefix: ``4.80 to 4.95 ms``; an open end is a question mark."""
    ends = [end for end in (low, high) if end is not None]
    if not ends:
        return NOT_MEASURED
    divisor, name = _scale(max(ends, key=abs), unit)
    shown = ["?" if e is None else _significant(e / divisor, 3) for e in (low, high)]
    if not unit:
        shown = ["?" if e is None else metric(e) for e in (low, high)]
    return f"{shown[0]} to {shown[1]}{'' if name.startswith('/') or not name else ' '}{name}"


def around(value: float, low: float, high: float, unit: str) -> str:
    """A value and its interval in one prefix: ``0.955 s (0.710 to 1.29 s)``."""
    divisor, name = _scale(high, unit)
    scaled = (_significant(x / divisor, 3) for x in (value, low, high))
    end = f" {name}" if name else ""
    return "{}{end} ({} to {}{end})".format(*scaled, end=end)


def metric(value: float | None) -> str:
    """A quality or loss: four significant digits at most, or "not measured"."""
    return NOT_MEASURED if value is None else _trimmed(_significant(value, 4))


def percent(value: float) -> str:
    """A fraction as a percentage with at most two digits after the point: ``2.5 %``."""
    text = f"{100 * value:.2f}".rstrip("0").rstrip(".")
    return f"{'0' if text == '-0' else text} %"


def per_second(value: float | None) -> str:
    """A rate: ``1234/s``; None is "not measured"."""
    if value is not None and 1e3 <= abs(value) < 1e6:
        return f"{value:.0f}/s"
    return show(value, "/s")
