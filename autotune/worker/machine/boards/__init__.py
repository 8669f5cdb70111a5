"""What the vendors' interfaces report of accelerators, beyond what torch does: one module each.

    nvidia  NVML              amd    /sys/class/drm        intel  torch.xpu and /sys/class/drm
    apple   torch.mps, sysctl jetson nvpmodel and devfreq

Each module has ``open(sources) -> Boards``, which never raises: a maker that cannot be asked
answers `Boards.unavailable` with a reason; and ``TORCH_CUDA``: torch shows the boards as CUDA
devices (ROCm's too).  A board is matched to torch's device by UUID, never
by index; the UUID stays here and is stored nowhere.

What this does not know: which process uses a board, and links between machines.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from autotune import plugins
from autotune.records.hardware import Gpu, Leaf
from autotune.worker.host import linux

FOLDER = "worker/machine/boards"
MAKERS = plugins.names(FOLDER)
# One way, after encoding: GT/s x 128/130 / 8 (generations 1 and 2: x 8/10 / 8).
_PCIE_LANE = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}


class Sources(NamedTuple):
    """Where to ask; tests give trees and fakes of their own.

    ``nvml`` and ``torch`` are modules, None for the real ones; ``command`` runs a program and
    gives what it printed, or None.
    """

    root: Path = linux.ROOT
    nvml: Any = None
    torch: Any = None
    platform: str = sys.platform
    command: Callable[[tuple[str, ...]], str | None] | None = None


class Facts(NamedTuple):
    """One accelerator as its vendor's interface reports it; None where it does not.

    ``keys`` are what torch may call it (its UUID, bare); they are compared and forgotten.
    ``topology`` counts the machine's other boards by how this one reaches them.  ``only``: it has
    no UUID, and there is no other.
    """

    name: str
    keys: tuple[str, ...] = ()
    memory_bytes: int | None = None
    multiprocessors: int | None = None
    power_limit_w: float | None = None
    power_mode: str | None = None
    mig: bool | None = None
    max_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    link_bytes_per_s: float | None = None
    pcie_bytes_per_s: float | None = None
    topology: dict[str, int] = {}
    only: bool = False


class Boards(Protocol):
    """One maker's accelerators on this machine."""

    def unavailable(self) -> str | None:
        """Why there are none, and what would help; None where there are."""

    def found(self) -> tuple[Facts, ...]:
        """The boards, in the interface's own order; none where they are unavailable."""


def open(maker: str, sources: Sources) -> Boards:
    """The boards of one of `MAKERS`; never raises."""
    boards: Boards = plugins.load(FOLDER, maker).open(sources)
    return boards


def of_device(uuid: str, sources: Sources | None = None) -> Facts | None:
    """What is known of torch's CUDA or ROCm device with this UUID."""
    sources, key = sources or Sources(), bare(uuid)
    seen = [facts for maker in MAKERS if _torch_cuda(maker) for facts in _found(maker, sources)]
    named = (facts for facts in seen if key in facts.keys)
    return next(named, next((facts for facts in seen if facts.only), None))


def others(sources: Sources | None = None) -> tuple[Gpu, ...]:
    """Accelerators that torch sees through neither CUDA nor ROCm, as records."""
    found: list[Facts] = []
    for maker in MAKERS:
        if not _torch_cuda(maker):
            found += _found(maker, sources or Sources())
    return tuple(
        described(Gpu(index=index, name=facts.name, memory_bytes=facts.memory_bytes), facts)
        for index, facts in enumerate(found)
        if facts.memory_bytes
    )


def _torch_cuda(maker: str) -> bool:
    return bool(plugins.load(FOLDER, maker).TORCH_CUDA)


def _found(maker: str, sources: Sources) -> tuple[Facts, ...]:
    boards = open(maker, sources)
    return boards.found() if boards.unavailable() is None else ()


def lacking(sources: Sources | None = None) -> dict[str, str]:
    """Why a vendor's interface reports no board, for each that reports none."""
    reasons = {maker: open(maker, sources or Sources()).unavailable() for maker in MAKERS}
    return {maker: reason for maker, reason in reasons.items() if reason is not None}


def described(gpu: Gpu, facts: Facts | None) -> Gpu:
    """The record with what the maker's interface adds to it."""
    if facts is None:
        return gpu
    named = {
        name: getattr(facts, name)
        for name in ("multiprocessors", "power_limit_w", "power_mode", "mig")
        if getattr(gpu, name) is None
    }
    values = {
        "link_bytes_per_s": (facts.link_bytes_per_s, "B/s"),
        "max_clock_hz": (facts.max_clock_hz, "Hz"),
        "memory_clock_hz": (facts.memory_clock_hz, "Hz"),
        "pcie_bytes_per_s": (facts.pcie_bytes_per_s, "B/s"),
        "power_limit_w": (facts.power_limit_w, "W"),
    }
    leaves = {
        name: Leaf(value=value, unit=unit, source="probed")
        for name, (value, unit) in values.items()
        if value
    }
    record = {field: getattr(gpu, field) for field in gpu.__struct_fields__}
    changes = named | {"topology": facts.topology, "figures": leaves | gpu.figures}
    return Gpu(**record | changes)


def bare(uuid: str) -> str:
    """A UUID without its prefix and dashes."""
    return uuid.lower().removeprefix("gpu-").removeprefix("mig-").replace("-", "")


def pcie(generation: int | None, lanes: int | None) -> float | None:
    """Bytes per second one way of a PCIe link."""
    lane = _PCIE_LANE.get(generation or 0)
    return lane * lanes if lane and lanes else None
