"""Jetson's INA3221 power monitors: the module's input, or the sum of its rails.

    class/hwmon/hwmonN (name=ina3221)   in1_label=VDD_IN  in1_input mV  curr1_input mA
    bus/i2c/drivers/ina3221x/*/iio*     rail_name_0=VDD_IN  in_power0_input mW    (older)

``VDD_IN`` and ``POM_5V_IN`` are the input of the whole module and contain the other rails.
Modules without such a monitor (AGX) have rails that do not contain one another: all are added.

What this does not know: the carrier board's parts that these rails do not feed.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from autotune.meters import Fault, MeterTools, _sampling, _sysfs

NOUN = "Jetson module"
OPTIONAL = True
WHOLE = 1
_INPUTS = ("VDD_IN", "POM_5V_IN")
_UNUSED = ("NC", "sum of shunt voltages")
_MAX_W = 200.0
_PERIOD_S = 0.1
_SAMPLE_S = 0.05


def open(tools: MeterTools) -> _sampling.Sampled:
    """The monitors below ``tools.sys``; never raises."""
    rails = [rail for rail in _rails(tools.sys) if rail[0] not in _UNUSED]
    inputs = [label for label, _ in rails if label in _INPUTS]
    sensors = [
        _sampling.Sensor(
            f"jetson:{label}", watts, _MAX_W, _PERIOD_S, counted=not inputs or label in inputs
        )
        for label, watts in rails
    ]
    return _sampling.Sampled(
        "jetson",
        sensors,
        tools,
        period_s=_SAMPLE_S,
        missing=(
            Fault("no_interface", "no INA3221 power monitor: not a Jetson"),
            "none needed elsewhere; on a Jetson: boot NVIDIA's kernel (L4T), which has the driver",
        ),
        remedies={"permission": "let the administrator make its files readable (chmod a+r)"},
        note="the whole module" if inputs else "the sum of the module's rails",
    )


def _rails(root: Path) -> Iterator[tuple[str, _sysfs.Watts]]:
    found: dict[str, _sysfs.Watts] = {}
    for chip in _sysfs.folders(root / "class/hwmon", "hwmon*"):
        if _sysfs.text(chip / "name") == "ina3221":
            for label, watts in _sysfs.rails(chip):
                found.setdefault(label, watts)
    for chip in _sysfs.folders(root / "bus/i2c/drivers/ina3221x", "*/iio*"):
        for path in sorted(chip.glob("in_power*_input")):
            number = path.name.removeprefix("in_power").removesuffix("_input")
            name = _sysfs.text(chip / f"rail_name_{number}")
            if isinstance(name, str) and name:
                found.setdefault(name, partial(_sysfs.scaled, path, 1e-3))
    yield from sorted(found.items(), key=lambda item: item[0])
