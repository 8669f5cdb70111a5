"""Readers of /proc, /sys and cgroups: what this machine is and what this process may use.

Readers that take ``root`` (tests give a tree of their own) return None for what cannot be read and
never raise for it.  Memory and physical cores come from psutil, imported only where it is called:
the measuring interpreter imports this module before the artifact's loader.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")
_UNLIMITED = 1 << 60
"""cgroup v1 writes "no limit" as 9223372036854771712, the largest page-aligned number."""


class CpuInfo(NamedTuple):
    """What /proc/cpuinfo says; ``flags`` is empty where it says nothing."""

    vendor: str | None
    model: str | None
    flags: frozenset[str]


class Caches(NamedTuple):
    """Data cache sizes in bytes: one core's L1d and L2, one L3."""

    l1d_bytes: int | None
    l2_bytes: int | None
    l3_bytes: int | None


def cpuinfo(root: Path = ROOT) -> CpuInfo:
    """Vendor, model name and flags of the first processor."""
    text = contents(root / "proc/cpuinfo") or ""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    flags = fields.get("flags") or fields.get("features") or ""
    vendor = fields.get("vendor_id") or fields.get("cpu implementer")
    model = fields.get("model name") or fields.get("cpu part")
    return CpuInfo(vendor or None, model or None, frozenset(flags.split()))


def virtualised(root: Path = ROOT) -> bool | None:
    """Whether the processor's flags name a hypervisor; None where there are no flags."""
    flags = cpuinfo(root).flags
    return "hypervisor" in flags if flags else None


def physical_cores() -> int | None:
    """Cores without SMT siblings; None where the system does not say."""
    import psutil

    found: int | None = psutil.cpu_count(logical=False)
    return found


def numa_nodes(root: Path = ROOT) -> int | None:
    return len(list((root / "sys/devices/system/node").glob("node[0-9]*"))) or None


def caches(root: Path = ROOT) -> Caches:
    """Data and unified caches of processor 0."""
    sizes: dict[int, int] = {}
    for index in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index[0-9]*")):
        level, size = integer(index / "level"), _size(contents(index / "size"))
        if level is not None and size is not None and contents(index / "type") != "Instruction":
            sizes[level] = size
    return Caches(sizes.get(1), sizes.get(2), sizes.get(3))


def affinity() -> int | None:
    """Logical processors that this process may run on; None where the system has no affinity."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    return len(os.sched_getaffinity(0))


def usable_cores(root: Path = ROOT, affinity_count: int | None = None) -> float:
    """The smallest of affinity, cpuset and the quota of every ancestor cgroup, as a float."""
    count = affinity() if affinity_count is None else affinity_count
    limits = [float(count if count is not None else os.cpu_count() or 1)]
    for group in groups(root):
        quota = _quota(group)
        if quota is not None:
            limits.append(quota)
        text = contents(group / "cpuset.cpus.effective") or contents(
            group / "cpuset.effective_cpus"
        )
        if text and ranges(text):
            limits.append(float(len(ranges(text))))
    return min(limits)


def memory_bytes() -> int:
    """All of the machine's memory."""
    import psutil

    return int(psutil.virtual_memory().total)


def usable_memory_bytes(root: Path = ROOT) -> int:
    """The smaller of the available memory and the tightest cgroup limit."""
    import psutil

    limits = [int(psutil.virtual_memory().available)]
    for group in groups(root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            value = integer(group / name)
            if value is not None and 0 < value < _UNLIMITED:
                limits.append(value)
    return min(limits)


def groups(root: Path = ROOT) -> tuple[Path, ...]:
    """The cgroup folders of this process and all their ancestors, in every hierarchy, v1 and v2."""
    mounts = list(_mounts(root))
    found: list[Path] = []
    for line in (contents(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for kind, options, below, mount in mounts:
            if kind == "cgroup2" if not controllers else set(controllers.split(",")) & options:
                found += _ancestors(mount, path, below)
    return tuple(dict.fromkeys(found))


def governor(root: Path = ROOT) -> str | None:
    return contents(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def peak_memory_bytes(root: Path = ROOT) -> int | None:
    """Largest resident size of this process so far (VmHWM)."""
    found = _status(root, "VmHWM")
    return None if found is None else found * 1024


def threads(root: Path = ROOT) -> float | None:
    """Threads of this process now."""
    found = _status(root, "Threads")
    return None if found is None else float(found)


def _status(root: Path, field: str) -> int | None:
    """A number in /proc/self/status."""
    text = contents(root / "proc/self/status") or ""
    match = re.search(rf"^{field}:\s*(\d+)", text, re.MULTILINE)
    return int(match[1]) if match else None


def ranges(text: str) -> set[int]:
    """The numbers in a list such as ``0-3,8``; empty where it is not one."""
    numbers: set[int] = set()
    for part in text.split(","):
        low, _, high = part.strip().partition("-")
        if not low.isdigit() or not (high or low).isdigit():
            return set()
        numbers.update(range(int(low), int(high or low) + 1))
    return numbers


def _quota(group: Path) -> float | None:
    """CPUs by quota: v2 ``cpu.max`` (absent or empty at the root) or v1 ``cpu.cfs_*``."""
    words = (contents(group / "cpu.max") or "").split()
    if len(words) == 2:
        quota, period = _float(words[0]), _float(words[1])
    else:
        quota = _float(contents(group / "cpu.cfs_quota_us"))
        period = _float(contents(group / "cpu.cfs_period_us"))
    return quota / period if quota and period and quota > 0 and period > 0 else None


def _mounts(root: Path) -> Iterator[tuple[str, set[str], str, Path]]:
    """(type, options, the hierarchy's folder that is mounted, mount point) of each cgroup mount."""
    for line in (contents(root / "proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        before, after = left.split(), right.split()
        if len(before) >= 5 and len(after) >= 3 and after[0] in ("cgroup", "cgroup2"):
            yield after[0], set(after[2].split(",")), before[3], root / before[4].lstrip("/")


def _ancestors(mount: Path, path: str, below: str) -> list[Path]:
    """From the group up to the mount point.  In a container the mount shows only a part."""
    if below != "/":
        inside = path == below or path.startswith(below + "/")
        path = path[len(below) :] if inside else "/"
    parts = [part for part in path.split("/") if part and part != ".."]
    return [mount.joinpath(*parts[:n]) for n in range(len(parts), -1, -1)]


def _size(text: str | None) -> int | None:
    match = re.fullmatch(r"(\d+)([KMG]?)", text or "")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]] if match else None


def integer(path: Path) -> int | None:
    """The whole number in a file; None where there is none."""
    text = contents(path)
    return int(text) if text and text.isdigit() else None


def _float(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def contents(path: Path) -> str | None:
    """The file's text without surrounding space; None where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
