"""Power sensors of the kernel's hwmon class: power meters of boards and power supplies.

    hwmonN/name          acpi "power_meter", "corsairpsu", "ina226", ...
    hwmonN/powerM_input  microwatts (powerM_average where there is no instant value)
    hwmonN/inM_input     millivolts, times currM_input, milliamperes, where there is no power

Only a sensor that is known to see the whole machine counts; what others feed is not known,
and rails may contain one another: they are shown and never added up.  Chips that belong to
another meter (``ina3221``: jetson, ``amdgpu``: amd) are left to it.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from autotune.meters import Fault, Tools, _sampling, _sysfs

_OTHERS = ("ina3221", "amdgpu")
_WHOLE = {"power_meter": None, "corsairpsu": "power total"}
"""Chips that see the whole machine, and the label of the sensor that does."""
_MAX_W = 5000.0
_PERIOD_S = 1.0
_SAMPLE_S = 0.1


def open(tools: Tools) -> _sampling.Sampled:
    """The sensors below ``tools.sys``; never raises."""
    return _sampling.Sampled(
        "hwmon",
        list(_sensors(tools.sys / "class/hwmon")),
        tools,
        period_s=_SAMPLE_S,
        missing=(
            Fault("no_interface", "no power sensor under /sys/class/hwmon"),
            "plug a power meter between the machine and the mains; or pass "
            "--accept-modelled-energy",
        ),
        remedies={"permission": "let the administrator make its files readable (chmod a+r)"},
    )


def _sensors(root: Path) -> Iterator[_sampling.Sensor]:
    seen: dict[str, int] = {}
    for chip in _sysfs.folders(root, "hwmon*"):
        name = _sysfs.text(chip / "name")
        if not isinstance(name, str) or name in _OTHERS:
            continue
        for label, watts in rails(chip):
            whole = name in _WHOLE and _WHOLE[name] in (None, label)
            domain = f"hwmon:{name}/{label.replace(' ', '-')}"
            seen[domain] = seen.get(domain, 0) + 1
            if seen[domain] > 1:
                domain = f"{domain}-{seen[domain]}"
            yield _sampling.Sensor(domain, watts, _MAX_W, _PERIOD_S, counted=whole)


def rails(chip: Path) -> Iterator[tuple[str, "_sysfs.Watts"]]:
    """Label and reader of each power, or of each voltage that has a current beside it."""
    powers = sorted({*chip.glob("power*_input"), *chip.glob("power*_average")})
    taken: set[str] = set()
    for path in sorted(powers, key=lambda p: (not p.name.endswith("_input"), p.name)):
        number = _number(path)
        if number not in taken:
            taken.add(number)
            label = _sysfs.text(chip / f"power{number}_label")
            yield _named(label, f"power{number}"), partial(_sysfs.scaled, path, 1e-6)
    if taken:
        return
    for path in sorted(chip.glob("in*_input")):
        number = _number(path)
        current = chip / f"curr{number}_input"
        if current.exists():
            label = _sysfs.text(chip / f"in{number}_label")
            yield (
                _named(label, f"in{number}"),
                partial(_sysfs.product, path, current, 1e-3 * 1e-3),
            )


def _named(label: str | Fault, otherwise: str) -> str:
    return label if isinstance(label, str) and label else otherwise


def _number(path: Path) -> str:
    found = re.search(r"\d+", path.name)
    return found[0] if found else ""
