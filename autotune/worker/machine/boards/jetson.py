"""Jetson modules: the power mode that nvpmodel set, and the GPU's clock.

    var/lib/nvpmodel/status  pmode:0002      etc/nvpmodel.conf  < POWER_MODEL ID=2 NAME=MODE_30W >

What this does not know: clocks that jetson_clocks or a custom mode set since boot.
"""

import re
from pathlib import Path

from autotune.worker.host import linux
from autotune.worker.machine.boards import Facts, Sources

TORCH_CUDA = True
_WATTS = re.compile(r"(?<!\d)(\d+)W(?![A-Za-z])")


class Jetson:
    """The module's GPU, which shares the module's memory and power mode."""

    def __init__(self, sources: Sources) -> None:
        self._root = sources.root
        self._model = (linux.contents(self._root / "proc/device-tree/model") or "").strip("\0 ")

    def unavailable(self) -> str | None:
        """Another machine."""
        return None if "Jetson" in self._model else "not a Jetson"

    def found(self) -> tuple[Facts, ...]:
        """The GPU; its power limit is the mode's, where the mode's name contains one."""
        if self.unavailable() is not None:
            return ()
        mode = self._mode()
        watts = _WATTS.search((mode or "").replace("_", " "))
        return (
            Facts(
                name=self._model,
                memory_bytes=linux.memory_bytes(),
                power_mode=mode,
                power_limit_w=float(watts[1]) if watts else None,
                max_clock_hz=self._clock(),
                only=True,
            ),
        )

    def _mode(self) -> str | None:
        status = re.search(
            r"pmode:(\d+)", linux.contents(self._root / "var/lib/nvpmodel/status") or ""
        )
        if status is None:
            return None
        text = linux.contents(self._root / "etc/nvpmodel.conf") or ""
        names: dict[str, str] = dict(re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", text))
        number = str(int(status[1]))
        return names.get(number, f"mode {number}")

    def _clock(self) -> float | None:
        folders: list[Path] = sorted((self._root / "sys/class/devfreq").glob("*"))
        rates = [
            linux.integer(f / "max_freq")
            for f in folders
            if re.search(r"gpu|gv11b|ga10b|gp10b", f.name)
        ]
        return float(max(filter(None, rates), default=0)) or None


def open(sources: Sources) -> Jetson:
    """The Jetson's GPU; never raises."""
    return Jetson(sources)
