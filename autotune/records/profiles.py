"""Profile files: read strictly, and hashed.

    bytes -> JSON (no NaN, no key twice) -> schema version -> every leaf -> Profile

An invalid value is refused with its path (``figures.gemm_fp32_1t_flop_per_s.unit``), the
rule and the remedy.  Hashes are sha256 over canonical JSON: keys sorted, no space, numbers
as msgspec writes them; so neither the order of keys nor the formatting changes them.
"""

import json
import math
import re
from collections.abc import Iterator
from hashlib import sha256
from typing import Any, NoReturn

import msgspec

from autotune.errors import FormatError
from autotune.records import codec
from autotune.records.figure_units import NONE, UNITS, unit_of
from autotune.records.hardware import Cpu, Gpu, Leaf, Profile

_LEAF_NAME = re.compile(r"[a-z][a-z0-9_]*")
_AGAIN = "`autotune profile` writes a valid one"
_MEASURES = ("torch", "numpy", "onnxruntime", "openvino")
"""Packages whose version changes what a probe measures."""


def read(data: bytes, *, what: str = "profile") -> Profile:
    """A profile from a file's bytes.

    Raises:
        FormatError: it is not a profile, with the path of the wrong leaf, the rule and the
            remedy.
    """
    raw = _parse(data, what)
    codec.check_version(data, Profile, what)
    for path, leaf in _leaves(raw, what):
        _check_leaf(path, leaf, what)
    try:
        profile = msgspec.convert(raw, type=Profile)
    except msgspec.ValidationError as error:
        path, rule = _where(str(error), "")
        _refuse(what, path, rule, _AGAIN)
    _check_whole(profile, what)
    return profile


def write(profile: Profile) -> bytes:
    """The file's bytes."""
    return codec.encode(profile, indent=2)


def content_hash(profile: Profile) -> str:
    """sha256 of the profile's whole content."""
    return _sha(msgspec.to_builtins(profile))


def hardware_fingerprint(cpu: Cpu, memory_bytes: int | None, gpus: tuple[Gpu, ...] = ()) -> str:
    """sha256 over the hardware facts that must agree for a profile to fit a machine."""
    boards = [name for gpu in gpus for name in [gpu.name] * gpu.count]
    gib = None if memory_bytes is None else round(memory_bytes / 2**30)
    return _sha([cpu.model, list(cpu.isa), cpu.usable_cores, gib, boards])


def software_fingerprint(software: dict[str, str]) -> str:
    """sha256 over the versions that change what a probe measures."""
    return _sha({name: software[name] for name in _MEASURES if name in software})


def _sha(value: Any) -> str:
    return sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()


# -- checks --------------------------------------------------------------------------------


def _parse(data: bytes, what: str) -> dict[str, Any]:
    """Python's parser, which passes NaN and repeated keys on, so that the error can name them."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        twice = next((k for i, (k, _) in enumerate(pairs) if k in dict(pairs[:i])), None)
        if twice is not None:
            _refuse(what, twice, "is given twice", "remove one of them")
        return found

    try:
        raw = json.loads(data, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{what} is not valid JSON: {error}; {_AGAIN}") from None
    if not isinstance(raw, dict):
        raise FormatError(f"{what} holds no profile: expected a JSON object; {_AGAIN}")
    for path, value in _numbers(raw, ""):
        if not math.isfinite(value):
            _refuse(what, path, f"is {value}, which is no finite number",
                    "write null for a value that is unknown")  # fmt: skip
    return raw


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _numbers(item, f"{path}[{index}]")


def _leaves(raw: dict[str, Any], what: str) -> Iterator[tuple[str, Leaf]]:
    """Each leaf with its path; msgspec's own path leaves the key of a dict out."""
    holders = [("figures", raw.get("figures"))]
    for key in ("gpus", "others"):
        boards = raw.get(key)
        for index, board in enumerate(boards if isinstance(boards, list) else ()):
            if isinstance(board, dict):
                holders.append((f"{key}[{index}].figures", board.get("figures")))
    for where, figures in holders:
        for name, leaf in figures.items() if isinstance(figures, dict) else ():
            try:
                yield f"{where}.{name}", msgspec.convert(leaf, type=Leaf)
            except msgspec.ValidationError as error:
                path, rule = _where(str(error), f"{where}.{name}")
                _refuse(what, path, rule, _AGAIN)


def _check_leaf(path: str, leaf: Leaf, what: str) -> None:
    name = path.rpartition(".")[2]
    if not _LEAF_NAME.fullmatch(name):
        _refuse(what, path, "is no name of a leaf: small letters, digits and _ only",
                "rename it, with its unit as the ending")  # fmt: skip
    unit = unit_of(name)
    if leaf.unit != unit:
        ending = next((end for end, of in UNITS if of == unit and unit != NONE), "no unit in it")
        _refuse(what, f"{path}.unit", f"is {leaf.unit!r}; a name with {ending} has {unit!r}",
                f"convert value, low and high to {unit!r}")  # fmt: skip
    for key in ("value", "low", "high"):
        number = getattr(leaf, key)
        if number is not None and (number < 0 or (number == 0 and unit != NONE)):
            _refuse(what, f"{path}.{key}", f"is {number:g} {unit}; it must be greater than 0",
                    "write null for a value that is unknown")  # fmt: skip
    _check_interval(path, leaf, what)
    if leaf.source == "datasheet" and leaf.value is not None and not leaf.reference:
        _refuse(what, f"{path}.reference", "is missing; a datasheet's leaf names its source",
                "give the public address where the number stands")  # fmt: skip


def _check_interval(path: str, leaf: Leaf, what: str) -> None:
    remedy = "correct it, or measure again with `autotune profile`"
    low, high, value = leaf.low, leaf.high, leaf.value
    if low is not None and high is not None and low > high:
        _refuse(what, f"{path}.low", f"is {low:g}, above high ({high:g})", remedy)
    if value is None:
        return
    if (low is not None and value < low) or (high is not None and value > high):
        ends = f"{'?' if low is None else f'{low:g}'}, {'?' if high is None else f'{high:g}'}"
        _refuse(what, f"{path}.value", f"is {value:g}, outside its interval [{ends}]", remedy)


def _check_whole(profile: Profile, what: str) -> None:
    """Check fields against each other."""
    cpu = profile.cpu
    if cpu.usable_cores and cpu.logical_cores and cpu.usable_cores > cpu.logical_cores:
        rule = f"is {cpu.usable_cores:g}, more than cpu.logical_cores ({cpu.logical_cores})"
        _refuse(what, "cpu.usable_cores", rule, _AGAIN)
    total, usable = profile.memory_bytes, profile.usable_memory_bytes
    if total and usable and usable > total:
        _refuse(
            what, "usable_memory_bytes", f"is {usable}, more than memory_bytes ({total})", _AGAIN
        )
    if profile.probe_s is not None and profile.probe_s < 0:
        _refuse(what, "probe_s", f"is {profile.probe_s:g}; it must not be negative", _AGAIN)


def _where(message: str, at: str) -> tuple[str, str]:
    """Path and rule of msgspec's "rule - at `$.a.b`"; a field that it names joins the path."""
    rule, _, tail = message.partition(" - at `$")
    path = (at + tail.rstrip("`")).lstrip(".")
    field = re.search(r"(unknown|missing required) field `(.+?)`", rule)
    if field is not None:
        path = f"{path}.{field[2]}" if path else field[2]
        known = "no field of this format" if field[1] == "unknown" else "missing"
        return path, f"is {known}"
    return path or "the whole file", rule[:1].lower() + rule[1:]


def _refuse(what: str, path: str, rule: str, remedy: str) -> NoReturn:
    raise FormatError(f"{what}: {path} {rule}; {remedy}")
