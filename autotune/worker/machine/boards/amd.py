"""AMD boards by the amdgpu driver's files; no library is needed.

What this does not know: xGMI links between boards (their rate is in no file).
"""

import re
from pathlib import Path

from autotune.worker.host import linux
from autotune.worker.machine.boards import Facts, Sources, _drm, bare

TORCH_CUDA = True
_VENDOR = "0x1002"


class Amd:
    """Every card that the amdgpu driver runs."""

    def __init__(self, sources: Sources) -> None:
        self._devices = [
            device
            for device in _drm.cards(sources.root, _VENDOR)
            if linux.integer(device / "mem_info_vram_total")
        ]

    def unavailable(self) -> str | None:
        """No card, or no driver for it."""
        if self._devices:
            return None
        return "no AMD card with the amdgpu driver in /sys/class/drm"

    def found(self) -> tuple[Facts, ...]:
        """The cards, in the kernel's order."""
        return tuple(_facts(device) for device in self._devices)


def open(sources: Sources) -> Amd:
    """AMD's boards; never raises."""
    return Amd(sources)


def _facts(device: Path) -> Facts:
    serial = linux.contents(device / "unique_id") or ""
    return Facts(
        name=linux.contents(device / "product_name") or "AMD GPU",
        # ROCm's UUID holds the letters of this number, and torch shows their codes
        keys=tuple(dict.fromkeys((bare(serial), serial.encode().hex()))) if serial else (),
        memory_bytes=linux.integer(device / "mem_info_vram_total"),
        power_limit_w=_drm.watts(device, "power1_cap"),
        max_clock_hz=_clock(device / "pp_dpm_sclk"),
        memory_clock_hz=_clock(device / "pp_dpm_mclk"),
        pcie_bytes_per_s=_drm.link(device),
    )


def _clock(path: Path) -> float | None:
    """The highest of a list such as ``1: 2100Mhz *``."""
    rates = [int(x) for x in re.findall(r"(\d+)\s*mhz", linux.contents(path) or "", re.IGNORECASE)]
    return max(rates) * 1e6 if rates else None
