"""Options of the command line, made from the fields of records.

    train_time_s: Annotated[float | None, option("Limit for the final training.", "5min")] = None
       --of(Budget)-->  --train-time 5min  --record(Budget, given)-->  Budget(train_time_s=300.0)

A field's annotation is the one place that defines an option: its name (without the unit that
ends it), type, help and range.  A value that belongs to no record is an error, never ignored.
"""

from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click
import msgspec

from autotune import units
from autotune.errors import QuantityError, UsageError
from autotune.records.base import Record
from autotune.records.budget import Budget, Effort, Limit

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R", bound=Record)

SERVING = (
    *("latency", "percentile", "energy", "memory", "load_per_s", "min_quality", "max_drop"),
    "accept_modelled_energy",
)
"""Limits of a deployment, which can be checked without a search."""
TRAINING = ("train_time_s", "train_energy_j", "train_memory_bytes", "target_quality", "eta")
POWERCAP = ("powercap_root", "powercap_label")
METERS = (*POWERCAP, "cpu_idle_w", "cpu_max_w")
"""How energy is measured or modelled."""
_DROPPED = {"_per_s": "1/s", "_s": "s", "_j": "J", "_bytes": "B"}
"""Endings of fields that options do without, since the value is typed with its unit."""
_KEPT = {"_w": "W"}


# -- from a field to an option -------------------------------------------------------------


def of(record: type[Record], *names: str, relative: bool = True) -> Callable[[F], F]:
    """A decorator: the options of a record's fields, of all of them or of those named.

    Args:
        record: the record.
        names: its fields, in the order of ``--help``.
        relative: whether a limit may be a factor of the baseline, e.g. 0.6x.
    """

    def add(command: F) -> F:
        for name in reversed(names or record.__struct_fields__):
            command = _option(record, name, relative)(command)
        return command

    return add


def _option(record: type[Record], name: str, relative: bool) -> Callable[[F], F]:
    hint = get_type_hints(record, include_extras=True)[name]
    about: msgspec.Meta = hint.__metadata__[0]  # raises for a field that is not annotated
    how = about.extra or {}
    kind = _without_none(get_args(hint)[0])
    ending = next((end for end in (*_DROPPED, *_KEPT) if name.endswith(end)), "")
    unit = how.get("unit") or (_DROPPED | _KEPT).get(ending)
    flag = name.removesuffix(ending) if ending in _DROPPED else name
    example = how.get("example")
    text = f"{about.description}{_default(record, name, unit)}"
    if kind is Limit and relative:
        example, text = f"{example}|0.6x", f"{text}  0.6x: of the dense eager baseline's."
    shown: dict[str, Any] = {"help": text}
    if kind is bool:
        shown |= {"is_flag": True}
    else:
        many = get_origin(kind) is tuple
        shown |= {"type": _type(kind, how, unit, relative), "metavar": example, "multiple": many}
    return click.option(f"--{flag.replace('_', '-')}", name, **shown)


def _without_none(hint: Any) -> Any:
    if get_origin(hint) not in (Union, UnionType):
        return hint
    (kind,) = (part for part in get_args(hint) if part is not NoneType)
    return kind


def _type(kind: Any, how: Mapping[str, Any], unit: str | None, relative: bool) -> Any:
    least, most = how.get("least"), how.get("most")
    if kind is Limit:
        return LimitParam(unit or "", relative=relative)
    if unit == "1/s":
        return RateParam()
    if unit:
        return QuantityParam(unit)
    if kind is float:
        return click.FLOAT if least is None else click.FloatRange(least, most)
    if kind is int:
        return click.INT if least is None else click.IntRange(least, most)
    if choices := how.get("choices") or (get_args(kind) if get_origin(kind) is Literal else None):
        return click.Choice(choices)
    if how.get("folder"):
        return click.Path(exists=True, file_okay=False, resolve_path=True)
    return click.STRING


def _default(record: type[Record], name: str, unit: str | None) -> str:
    """``  [default: 95]``, where the record has one other than None, False and ()."""
    value = next(f.default for f in msgspec.structs.fields(record) if f.name == name)
    if value is None or value is False or value == ():
        return ""
    if isinstance(value, float):
        value = units.tick(value, unit or "")
    return f"  [default: {value}]"


# -- from what was given to a record -------------------------------------------------------


def given_fields(record: type[Record], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values given for a record's fields, without unset flags and empty lists."""
    known = {name: given[name] for name in record.__struct_fields__ if name in given}
    return {
        name: value
        for name, value in known.items()
        if value is not None and value is not False and value != ()
    }


def record(kind: type[R], given: Mapping[str, Any]) -> R:
    """The record of what was given; its other fields have their defaults."""
    return msgspec.convert(given_fields(kind, given), type=kind)


def budget_and_effort(given: Mapping[str, Any]) -> tuple[Budget, Effort]:
    """Both records of a run.

    Raises:
        UsageError: ``--eta`` without a quality whose cost it weighs.
    """
    unknown = set(given) - {*Budget.__struct_fields__, *Effort.__struct_fields__}
    assert not unknown, f"options that no record takes: {sorted(unknown)}"
    if given.get("eta") is not None and given.get("target_quality") is None:
        raise UsageError("--eta weighs the cost of reaching a quality: give --target-quality too")
    return record(Budget, given), record(Effort, given)


# -- types that click lacks ----------------------------------------------------------------


class QuantityParam(click.ParamType[Any, Any]):
    """A number with an SI unit, e.g. 5ms."""

    name = "quantity"

    def __init__(self, unit: str) -> None:
        self._unit = unit

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parsed(value)
        except QuantityError as error:
            self.fail(str(error), param, ctx)

    def _parsed(self, text: str) -> float | Limit:
        return units.parse(text, self._unit)


class LimitParam(QuantityParam):
    """A limit: a number with an SI unit or, with ``relative``, a factor, e.g. 0.6x."""

    def __init__(self, unit: str, *, relative: bool = True) -> None:
        super().__init__(unit)
        self._relative = relative

    def _parsed(self, text: str) -> Limit:
        if self._relative:
            return units.parse_limit(text, self._unit)
        return Limit(value=units.parse(text, self._unit))


class RateParam(click.ParamType[Any, Any]):
    """Requests per second, e.g. 200/s."""

    name = "rate"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        if isinstance(value, float):
            return value
        number, sign, unit = str(value).partition("/")
        try:
            rate = float(number)
        except ValueError:
            rate = 0.0
        if rate <= 0 or (sign and unit != "s"):
            self.fail(f"{value!r} is not a rate: give requests per second, e.g. 200/s", param, ctx)
        return rate


class PriceParam(click.ParamType[Any, Any]):
    """What a machine costs an hour, e.g. h100-sxm-x8=24.50/h."""

    name = "price"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, float]:
        if isinstance(value, tuple):
            return value
        name, sign, amount = str(value).rpartition("=")
        try:
            price = float(amount.removesuffix("/h"))
        except ValueError:
            price = 0.0
        if not sign or not name or not amount.endswith("/h") or not 0 < price < float("inf"):
            self.fail(f"{value!r} is not a price: give NAME=2.50/h", param, ctx)
        return name, price
