"""Graphics cards in /sys/class/drm: what Linux drivers report of them without a library."""

import re
from collections.abc import Iterator
from pathlib import Path

from autotune.worker.host import linux
from autotune.worker.machine.boards import pcie

_GENERATION = {"2.5": 1, "5.0": 2, "8.0": 3, "16.0": 4, "32.0": 5, "64.0": 6}


def cards(root: Path, vendor: str) -> Iterator[Path]:
    """The device folders of one vendor's cards, by its PCI id (``0x1002``)."""
    folders = (root / "sys/class/drm").glob("card[0-9]*")
    for card in sorted(f for f in folders if re.fullmatch(r"card\d+", f.name)):
        if linux.contents(card / "device/vendor") == vendor:
            yield card / "device"


def watts(device: Path, name: str) -> float | None:
    """A power limit of the card's sensor chip, in watts."""
    for path in sorted(device.glob(f"hwmon/hwmon*/{name}")):
        value = linux.integer(path)
        if value:
            return value * 1e-6
    return None


def link(device: Path) -> float | None:
    """Bytes per second one way of the card's PCIe link at its best."""
    speed = re.match(r"([\d.]+) GT/s", linux.contents(device / "max_link_speed") or "")
    lanes = linux.integer(device / "max_link_width")
    return pcie(_GENERATION.get(speed[1]) if speed else None, lanes)
