"""A laptop's battery while it discharges: the whole machine, screen and all.

    class/power_supply/BAT0   type=Battery  status=Discharging
                              power_now µW, or current_now µA times voltage_now µV

On mains nothing is measured: what flows into a battery is not what the machine uses.

What this does not know: how old the gauge's answer is; a few seconds are assumed, so that
only long windows resolve.
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
        and _sysfs.text(folder / "scope") != "Device"  # a mouse's own
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
            "none needed: a machine on mains is measured otherwise",
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
        return abs(power)  # some gauges count what leaves as negative
    product = _sysfs.product(folder / "current_now", folder / "voltage_now", 1e-12)
    return product if isinstance(product, Fault) else abs(product)
