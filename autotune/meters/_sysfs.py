"""Numbers in sysfs files: a value, or a fault that names the error."""

import errno
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from autotune.meters import Fault

Watts = Callable[[], float | Fault]


def text(path: Path) -> str | Fault:
    """A file's text without surrounding white space, or a fault with the errno."""
    try:
        return path.read_bytes().decode("ascii", errors="replace").strip()
    except OSError as error:
        number = error.errno or 0
        denied = number in (errno.EACCES, errno.EPERM)
        detail = f"errno {number} ({os.strerror(number)}) reading {path.name}"
        return Fault("permission" if denied else "no_interface", detail)


def number(path: Path) -> int | Fault:
    """The integer in a file."""
    found = text(path)
    if isinstance(found, Fault):
        return found
    try:
        return int(found)
    except ValueError:
        return Fault("implausible", f"{path.name} holds {found[:20]!r}, not a number")


def scaled(path: Path, unit: float) -> float | Fault:
    """A file's integer times ``unit``."""
    value = number(path)
    return value if isinstance(value, Fault) else value * unit


def product(first: Path, second: Path, unit: float) -> float | Fault:
    """The product of two files' integers (a voltage and a current) and ``unit``."""
    one, other = number(first), number(second)
    if isinstance(one, Fault):
        return one
    return other if isinstance(other, Fault) else one * other * unit


def folders(root: Path, pattern: str) -> list[Path]:
    """Folders below ``root`` that match ``pattern``, sorted; none where it cannot be read."""
    try:
        return sorted(path for path in root.glob(pattern) if path.is_dir())
    except OSError:
        return []


def rails(chip: Path) -> Iterator[tuple[str, Watts]]:
    """Label and reader (in W) of each power file; without any, of each voltage with a current."""
    powers = sorted({*chip.glob("power*_input"), *chip.glob("power*_average")})
    taken: set[str] = set()
    for path in sorted(powers, key=lambda p: (not p.name.endswith("_input"), p.name)):
        number = _number(path)
        if number not in taken:
            taken.add(number)
            label = text(chip / f"power{number}_label")
            yield _named(label, f"power{number}"), partial(scaled, path, 1e-6)
    if taken:
        return
    for path in sorted(chip.glob("in*_input")):
        number = _number(path)
        current = chip / f"curr{number}_input"
        if current.exists():
            label = text(chip / f"in{number}_label")
            yield (
                _named(label, f"in{number}"),
                partial(product, path, current, 1e-3 * 1e-3),
            )


def _named(label: str | Fault, otherwise: str) -> str:
    return label if isinstance(label, str) and label else otherwise


def _number(path: Path) -> str:
    found = re.search(r"\d+", path.name)
    return found[0] if found else ""
