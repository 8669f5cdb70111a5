"""Power sensors of the kernel's hwmon class: power meters of boards and power supplies.

    hwmonN/name          acpi "power_meter", "corsairpsu", "ina226", ...
    hwmonN/powerM_input  microwatts (powerM_average where there is no instant value)
    hwmonN/inM_input     millivolts, times currM_input, milliamperes, where there is no power

Only a sensor that measures the whole machine is in the total.  What other sensors supply is
unknown, and rails may contain one another: they are listed and not added.  Chips that
another meter reads (``ina3221``: jetson, ``amdgpu``: amd) are skipped.
"""

from collections.abc import Iterator
from pathlib import Path

from autotune.meters import Fault, MeterTools, _sampling, _sysfs

NOUN = "power meter"
OPTIONAL = True
WHOLE = 2
_OTHERS = ("ina3221", "amdgpu")
_WHOLE = {"power_meter": None, "corsairpsu": "power total"}
"""Chips that measure the whole machine, and the label of the sensor that does (None: any)."""
_MAX_W = 5000.0
_PERIOD_S = 1.0
_SAMPLE_S = 0.1


def open(tools: MeterTools) -> _sampling.Sampled:
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
        for label, watts in _sysfs.rails(chip):
            whole = name in _WHOLE and _WHOLE[name] in (None, label)
            domain = f"hwmon:{name}/{label.replace(' ', '-')}"
            seen[domain] = seen.get(domain, 0) + 1
            if seen[domain] > 1:
                domain = f"{domain}-{seen[domain]}"
            yield _sampling.Sensor(domain, watts, _MAX_W, _PERIOD_S, counted=whole)
