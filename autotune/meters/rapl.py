"""RAPL through a powercap tree: package and dram counters of the processor.

    intel-rapl:0        name=package-0   counted
    intel-rapl:0:0      name=core        inside the package: never added
    intel-rapl:0:1      name=dram        counted
    intel-rapl:1        name=psys        contains the packages: never added
    intel-rapl-mmio:0   name=package-0   the same counter by another driver: dropped

The tree may be the kernel's (flat links, nested folders, or both), one that a host
shares with its VM, or a simulated one; ``origin`` says which.  ``energy_uj`` has been
readable by root alone since CVE-2020-8694: that is reported as ``permission``.

What this does not know: which process used the energy, and board parts beyond package and
memory.
"""

import re
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import NamedTuple

from autotune.meters import Fault, MeterTools, Origin, Reading, _sysfs, conclude, span, unavailable
from autotune.records.measurement import Domain, EnergySource

NOUN = "CPU"
REMEDIES = {
    "vm_guest": (
        "have the host share its /sys/class/powercap with this guest (read-only, for",
        "example by virtiofs), mount it at DIR, and run",
        "  autotune run MODEL.py --energy 20mJ --powercap-root DIR",
        "or tune on the bare machine, where `autotune doctor` finds the counters itself.",
    ),
    "permission": (
        "let the administrator run, once after each boot:",
        "  chmod a+r /sys/class/powercap/*/energy_uj /sys/class/powercap/*/*/energy_uj",
    ),
}
_ZONE = re.compile(r"(?P<kind>[A-Za-z][\w-]*):(?P<ids>\d+(?::\d+)*)")
_PACKAGE = re.compile(r"package-\d+(-die-\d+)?")
_PACKAGE_MAX_W = 1000.0
_DRAM_MAX_W = 300.0
"""No package or socket's memory draws more: the bound of the wrap and plausibility rules."""
_QUANTUM_J = 61e-6
"""One count of the usual 1/2^14 J energy unit."""
_NEAR_UJ = 2_000_000
"""Mirrors that are read one after the other differ by a few updates at most."""
_TRIES = 8
_DEPTH = 4


class Zone(NamedTuple):
    """One counted zone; ``range_uj`` is None where it cannot be read."""

    domain: str
    path: Path
    range_uj: int | None
    max_w: float


class Rapl:
    """The counted zones of one powercap tree."""

    def __init__(self, tools: MeterTools) -> None:
        self._tools = tools
        self._origin: Origin = tools.origin
        self._zones = {zone.domain: zone for zone in _zones(tools.powercap)}
        self.periods_s: dict[str, float] = {}

    def sources(self) -> tuple[EnergySource, ...]:
        """One source; available only if every counted zone can be read now."""
        domains = tuple(self._zones)
        fault, remedy = self._fault()
        periods = [self.periods_s[name] for name in domains if name in self.periods_s]
        return (
            EnergySource(
                name="rapl",
                domains=domains,
                label="measured_counter" if fault is None else "unavailable",
                origin=self._origin,
                reason=None if fault is None else str(fault),
                remedy=remedy,
                update_period_s=max(periods) if periods else None,
            ),
        )

    def read(self) -> Reading:
        """Microjoules by domain."""
        at_s = self._tools.clock()
        counters = {name: _counter(zone) for name, zone in self._zones.items()}
        for first, second in combinations(self._zones.values(), 2):
            if _is_dram(first.domain) == _is_dram(second.domain):
                self._read_together(first, second, counters)
        return Reading(at_s, counters)

    def _read_together(self, first: Zone, second: Zone, counters: dict[str, int | Fault]) -> None:
        """Two counters that nearly agree may be one: read both within one update, so that
        mirrors have equal values.
        """
        one, other = counters[first.domain], counters[second.domain]
        if not isinstance(one, int) or not isinstance(other, int):
            return
        if one == other or abs(one - other) > _NEAR_UJ:
            return
        for _ in range(_TRIES):
            before, between, after = _counter(first), _counter(second), _counter(first)
            if before == after:
                counters[first.domain], counters[second.domain] = before, between
                return

    def difference(self, *readings: Reading) -> tuple[Domain, ...]:
        """Joules by domain.  A zone whose values equal another's is dropped."""
        kept = [z for z in self._zones.values() if not self._mirrored(z, readings)]
        return tuple(self._domain(zone, readings) for zone in kept)

    def max_gap_s(self) -> float | None:
        """A quarter of the time in which the fastest counter could wrap."""
        spans = [z.range_uj * 1e-6 / z.max_w for z in self._zones.values() if z.range_uj]
        return min(spans) / 4 if spans else None

    def _domain(self, zone: Zone, readings: tuple[Reading, ...]) -> Domain:
        total_uj = 0
        for before, after in pairwise(readings):
            step = _step(zone, before, after)
            if isinstance(step, Fault):
                return unavailable(zone.domain, step, self._origin)
            total_uj += step
        duration_s, edge_s = span(zone.domain, readings[0], readings[-1])
        return conclude(
            zone.domain,
            total_uj * 1e-6,
            duration_s,
            edge_s=edge_s,
            period_s=self.periods_s.get(zone.domain),
            quantum_j=_QUANTUM_J,
            max_w=zone.max_w,
            origin=self._origin,
        )

    def _mirrored(self, zone: Zone, readings: tuple[Reading, ...]) -> bool:
        """True if an earlier zone of the same kind read the same in every reading and moved."""
        mine = [r.counters.get(zone.domain) for r in readings]
        if not all(isinstance(value, int) for value in mine) or mine[0] == mine[-1]:
            return False
        for name in self._zones:
            if name == zone.domain:
                return False
            if _is_dram(name) == _is_dram(zone.domain) and mine == [
                r.counters.get(name) for r in readings
            ]:
                return True
        return False

    def _fault(self) -> tuple[Fault | None, str | None]:
        if not self._zones:
            return self._nothing()
        for zone in self._zones.values():
            value = _counter(zone)
            if isinstance(value, Fault):
                return value, _remedy(zone, value)
            if zone.range_uj is None:
                detail = f"{zone.path.name}/max_energy_range_uj cannot be read"
                return Fault("wrap_ambiguous", detail), "use a tree whose ranges can be read"
        return None, None

    def _nothing(self) -> tuple[Fault, str]:
        if self._origin != "local":
            return (
                Fault("no_interface", "the tree holds no zone named package-*"),
                "pass a powercap tree (folders such as intel-rapl:0 with name, energy_uj and "
                "max_energy_range_uj) as --powercap-root DIR",
            )
        if _guest(self._tools.proc):
            return Fault("vm_guest"), (
                "ask the host for its powercap tree and pass --powercap-root DIR; "
                "or pass --accept-modelled-energy"
            )
        return Fault("no_interface", "no powercap zone named package-*"), (
            "load the kernel's driver (modprobe intel_rapl_msr, as root); "
            "or pass --accept-modelled-energy"
        )


def open(tools: MeterTools) -> Rapl:
    """The meter of ``tools.powercap``; never raises, an empty tree is an unavailable source."""
    return Rapl(tools)


def _step(zone: Zone, before: Reading, after: Reading) -> int | Fault:
    """Microjoules between two neighbouring readings: the delta modulo the zone's range.

    It holds only if the gap is under range / P_max, so that at most one wrap can occur in it.
    """
    first, last = before.counters.get(zone.domain), after.counters.get(zone.domain)
    for value in (first, last):
        if not isinstance(value, int):
            return value if isinstance(value, Fault) else Fault("no_interface", "never read")
    assert isinstance(first, int)
    assert isinstance(last, int)
    if zone.range_uj is None:
        if last < first:
            return Fault("counter_reset", "it went backwards and its range cannot be read")
        return Fault("wrap_ambiguous", "its range cannot be read")
    gap_s = after.at_s - before.at_s
    if gap_s >= zone.range_uj * 1e-6 / zone.max_w:
        return Fault("wrap_ambiguous", f"{gap_s:.0f} s between two readings")
    if last >= first:
        return last - first
    wrapped = last - first + zone.range_uj
    if wrapped * 1e-6 > zone.max_w * gap_s:
        return Fault("counter_reset", "it went backwards further than a wrap explains")
    return wrapped


def _zones(root: Path) -> list[Zone]:
    """Counted zones in order, each domain once; MSR before MMIO unless only MMIO is readable."""
    best: dict[str, tuple[tuple[bool, bool, str], Zone]] = {}
    for path in _folders(root):
        zone = _zone(path)
        if zone is None:
            continue
        rank = (isinstance(_counter(zone), Fault), "mmio" in path.name, path.name)
        if zone.domain not in best or rank < best[zone.domain][0]:
            best[zone.domain] = (rank, zone)
    return [best[name][1] for name in sorted(best)]


def _folders(root: Path) -> Iterator[Path]:
    """Zone folders, each name once: a class tree shows a subzone both as a link and nested."""
    seen: set[str] = set()
    level = [root]
    for depth in range(_DEPTH):
        children = [child for folder in level for child in _children(folder)]
        # only the first level may hold folders that are no zones: the control types
        level = [path for path in children if depth == 0 or _ZONE.fullmatch(path.name)]
        for path in level:
            if _ZONE.fullmatch(path.name) and path.name not in seen:
                seen.add(path.name)
                yield path


def _children(folder: Path) -> list[Path]:
    """Control types and zones below a folder; a link that leads upwards is not one."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    return [p for p in entries if p.name not in ("device", "subsystem", "power") and p.is_dir()]


def _zone(path: Path) -> Zone | None:
    name = _sysfs.text(path / "name")
    if not isinstance(name, str):
        return None
    range_uj = _sysfs.number(path / "max_energy_range_uj")
    limit = range_uj if isinstance(range_uj, int) and range_uj > 0 else None
    if _PACKAGE.fullmatch(name):
        return Zone(f"rapl:{name}", path, limit, _PACKAGE_MAX_W)
    if name == "dram":
        return Zone(f"rapl:{_parent(path)}/dram", path, limit, _DRAM_MAX_W)
    return None  # core, uncore and psys lie inside or around what is counted


def _parent(path: Path) -> str:
    """The package's own name above a subzone, found by the ids: the folder may be a link."""
    above = path.name.rpartition(":")[0]
    for folder in (path.parent, path.parent / above, path.resolve().parent):
        if folder.name == above:
            name = _sysfs.text(folder / "name")
            if isinstance(name, str):
                return name
    return above


def _counter(zone: Zone) -> int | Fault:
    value = _sysfs.number(zone.path / "energy_uj")
    if isinstance(value, Fault):
        return value
    if value < 0 or (zone.range_uj is not None and value > zone.range_uj):
        return Fault("implausible", f"energy_uj holds {value}, outside its range")
    return value


def _remedy(zone: Zone, fault: Fault) -> str:
    if fault.reason == "permission":
        return (
            "let the administrator run: chmod a+r /sys/class/powercap/*/energy_uj (lost at a "
            "reboot), or add a udev rule for the subsystem powercap that does the same"
        )
    return f"check {zone.path.name} in the powercap tree: it cannot be read as a counter"


def _is_dram(domain: str) -> bool:
    return domain.endswith("/dram")


def _guest(proc: Path) -> bool:
    """True on a virtual machine: the processor's flags include ``hypervisor``."""
    text = _sysfs.text(proc / "cpuinfo")
    if isinstance(text, Fault):
        return False
    found = re.search(r"^flags\s*:.*\bhypervisor\b", text, re.MULTILINE)
    return found is not None
