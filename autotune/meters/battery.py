"""A laptop's battery while it discharges: the power of the whole machine, screen included.

    class/power_supply/BAT0   type=Battery  status=Discharging
                              power_now µW, or current_now µA times voltage_now µV

On mains nothing is measured: the charging power is not the power that the machine uses.

What this does not know: the age of the gauge's value; 2 s are assumed, so that short
windows are below resolution.
"""

from functools import partial
from pathlib import Path

from autotune.meters import Fault, MeterTools, _sampling, _sysfs

NOUN = "battery"
OPTIONAL = True
WHOLE = 3
_MAX_W = 500.0
_PERIOD_S = 2.0
_SAMPLE_S = 0.5


def open(tools: MeterTools) -> _sampling.Sampled:
    """The batteries below ``tools.sys``; never raises."""
    found = [
        folder
        for folder in _sysfs.folders(tools.sys / "class/power_supply", "*")
        if _sysfs.text(folder / "type") == "Battery"
        and _sysfs.text(folder / "scope") != "Device"  # a mouse's battery, for example
    ]
    sensors = [
        _sampling.Sensor(f"battery:{folder.name}", partial(_watts, folder), _MAX_W, _PERIOD_S)
        for folder in found
    ]
    return _sampling.Sampled(
        "battery",
        sensors,
        tools,
        period_s=_SAMPLE_S,
        missing=(
            Fault("no_interface", "no battery"),
            "none needed: other meters measure a machine on mains",
        ),
        remedies={
            "no_interface": "unplug the charger: a battery shows the machine's power only "
            "while it discharges"
        },
        note="the whole machine, screen included",
    )


def _watts(folder: Path) -> float | Fault:
    status = _sysfs.text(folder / "status")
    if isinstance(status, Fault):
        return status
    if status != "Discharging":
        return Fault("no_interface", f"the battery's status is {status!r}, not 'Discharging'")
    power = _sysfs.scaled(folder / "power_now", 1e-6)
    if not isinstance(power, Fault):
        return abs(power)  # some gauges report discharging as negative
    product = _sysfs.product(folder / "current_now", folder / "voltage_now", 1e-12)
    return product if isinstance(product, Fault) else abs(product)
