"""Topology of the processor: sockets, SMT, performance and efficiency cores, caches, clocks.

Read from /sys; every reader takes ``root`` and returns None for what is not there.

What this does not know: the true topology below a virtual machine whose host shows another one.
"""

from collections.abc import Iterator
from pathlib import Path

from autotune.records.hardware import Leaf
from autotune.worker.host import linux

_CPUS = "sys/devices/system/cpu"


def sockets(root: Path = linux.ROOT) -> int | None:
    found = {linux.contents(cpu / "topology/physical_package_id") for cpu in _cpus(root)}
    return len(found - {None, "-1"}) or None


def threads_per_core(root: Path = linux.ROOT) -> int | None:
    """The most hardware threads of a core: 1 where SMT is off."""
    texts = (linux.contents(cpu / "topology/thread_siblings_list") for cpu in _cpus(root))
    return max((len(linux.ranges(text)) for text in texts if text), default=0) or None


def core_kinds(root: Path = linux.ROOT) -> tuple[int, int] | None:
    """Physical performance and efficiency cores; None where all are of one kind.

    Intel's kernel driver has a folder for each kind; Arm's gives each core's capacity, and cores of
    the highest one are performance cores.
    """
    fast = linux.contents(root / "sys/devices/cpu_core/cpus")
    small = linux.contents(root / "sys/devices/cpu_atom/cpus")
    if fast and small:
        return _cores(root, linux.ranges(fast)), _cores(root, linux.ranges(small))
    capacity = {
        int(cpu.name[3:]): value
        for cpu in _cpus(root)
        if (value := linux.integer(cpu / "cpu_capacity")) is not None
    }
    top = max(capacity.values(), default=0)
    low = {cpu for cpu, value in capacity.items() if value < top}
    if not low:
        return None
    return _cores(root, set(capacity) - low), _cores(root, low)


def l3_count(root: Path = linux.ROOT) -> int | None:
    """Number of L3 caches, each shared by some of the processors."""
    found = set()
    for cpu in _cpus(root):
        for index in (cpu / "cache").glob("index[0-9]*"):
            if linux.contents(index / "level") == "3":
                found.add(linux.contents(index / "shared_cpu_list"))
    return len(found - {None}) or None


def clocks(root: Path = linux.ROOT) -> dict[str, Leaf]:
    """``base_clock_hz`` and ``max_clock_hz`` of the fastest core, where the driver reports them."""
    found = {}
    for name, file in (("base_clock_hz", "base_frequency"), ("max_clock_hz", "cpuinfo_max_freq")):
        rates = [linux.integer(cpu / "cpufreq" / file) for cpu in _cpus(root)]
        best = max((rate for rate in rates if rate), default=None)
        if best is not None:
            found[name] = Leaf(value=best * 1e3, unit="Hz", source="probed")
    return found


def _cores(root: Path, cpus: set[int]) -> int:
    """Physical cores of these processors."""
    places = set()
    for cpu in cpus:
        folder = root / _CPUS / f"cpu{cpu}" / "topology"
        core, package = (
            linux.contents(folder / "core_id"),
            linux.contents(folder / "physical_package_id"),
        )
        places.add((package, core) if core is not None else (cpu,))
    return len(places)


def _cpus(root: Path) -> Iterator[Path]:
    yield from (root / _CPUS).glob("cpu[0-9]*")
