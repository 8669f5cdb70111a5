"""Apple's GPU by torch.mps; its memory is the machine's own.

What this does not know: its clock and power limit, which no public interface reports.
"""

import subprocess
from typing import Any

from autotune.worker.machine.boards import Facts, Sources

TORCH_CUDA = False
_NAME = ("sysctl", "-n", "machdep.cpu.brand_string")


class Apple:
    """The one GPU of Apple silicon."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        torch: Any = sources.torch
        if torch is None and sources.platform == "darwin":
            import torch
        self._torch = torch

    def unavailable(self) -> str | None:
        """Another system, or a torch without Metal."""
        if self._sources.platform != "darwin":
            return "not a Mac"
        if not self._torch.backends.mps.is_available():
            return "this torch finds no Metal device (macOS 14 on Apple silicon has one)"
        return None

    def found(self) -> tuple[Facts, ...]:
        """The GPU, under its chip's name, with the memory that Metal recommends."""
        if self.unavailable() is not None:
            return ()
        name = (self._sources.command or _printed)(_NAME)
        memory = int(self._torch.mps.recommended_max_memory())
        return (Facts(name=(name or "").strip() or "Apple GPU", memory_bytes=memory),)


def open(sources: Sources) -> Apple:
    """Apple's GPU; never raises."""
    return Apple(sources)


def _printed(command: tuple[str, ...]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
