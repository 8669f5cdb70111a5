"""The surroundings of a measurement: the machine's state, and who else used it meanwhile.

    state() ........... before the artifact is loaded: governor, turbo, SMT, load, ...
    counters() ........ at the start and the end of the timed region
    grown(a, b, cpu) .. steal, throttling and foreign load between them

Only the processors that this process may use are counted, so that a busy neighbour on
other cores of a large host does not show.  What cannot be read is None.  Stdlib only.

What this does not know: frequency changes within the window, shared caches and memory bandwidth.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from autotune.worker.host import linux

Environment = dict[str, str | float | None]

_SHORTEST_S = 0.2
"""Clock ticks are 10 ms: shares of less processor time than this are unknown."""
_ON_OFF = {"1": "on", "0": "off"}


class Counters(NamedTuple):
    """Growing counters, in seconds of all usable processors together."""

    steal_s: float | None = None
    busy_s: float | None = None
    total_s: float | None = None
    nr_throttled: int | None = None
    throttled_s: float | None = None


def state(root: Path = linux.ROOT) -> Environment:
    """The machine as it stands; to be read before our own load shows in it."""
    affinity = linux.affinity()
    return {
        "governor": linux.governor(root),
        "turbo": _turbo(root),
        "smt": _ON_OFF.get(linux.contents(root / "sys/devices/system/cpu/smt/active") or ""),
        "load_average": _load_average(),
        "temperature_c": _temperature(root),
        "cpus": float(os.cpu_count() or 0) or None,
        "affinity": None if affinity is None else float(affinity),
        "usable_cores": linux.usable_cores(root),
    }


def counters(root: Path = linux.ROOT) -> Counters:
    """Steal, busy and total time of the usable processors, and cgroup throttling."""
    ticks = _ticks(root)
    hertz = os.sysconf("SC_CLK_TCK")
    steal = busy = total = None
    if ticks is not None:
        total = sum(ticks) / hertz
        steal = ticks[7] / hertz
        busy = total - steal - (ticks[3] + ticks[4]) / hertz
    return Counters(steal, busy, total, *_throttling(root))


def grown(before: Counters, after: Counters, own_cpu_s: float | None) -> Environment:
    """Changes between two readings.

    ``foreign_load`` is the share of the usable processors that others kept busy while this
    process used ``own_cpu_s``; ``steal_share`` what the hypervisor took.
    """

    def growth(name: str) -> float | None:
        first, last = getattr(before, name), getattr(after, name)
        return None if first is None or last is None else float(last - first)

    found: Environment = {name: growth(name) for name in ("steal_s", "nr_throttled", "throttled_s")}
    total, busy, steal = growth("total_s"), growth("busy_s"), growth("steal_s")
    found["steal_share"] = found["foreign_load"] = None
    if total is not None and total >= _SHORTEST_S:
        found["steal_share"] = None if steal is None else max(0.0, steal / total)
        if busy is not None and own_cpu_s is not None:
            found["foreign_load"] = min(1.0, max(0.0, (busy - own_cpu_s) / total))
    return found


def _ticks(root: Path) -> list[int] | None:
    """User nice system idle iowait irq softirq steal, summed over the usable processors."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    summed = [0] * 8
    seen = False
    for line in (linux.contents(root / "proc/stat") or "").splitlines():
        match = re.match(r"cpu(\d+) ", line)
        if match is None or (usable is not None and int(match[1]) not in usable):
            continue
        words = line.split()[1:9]
        if len(words) < 8 or not all(word.isdigit() for word in words):
            return None
        summed = [a + int(b) for a, b in zip(summed, words, strict=True)]
        seen = True
    return summed if seen and any(summed) else None


def _throttling(root: Path) -> tuple[int | None, float | None]:
    """How often, and for how many seconds, quotas stopped this cgroup and its ancestors."""
    counts, seconds = [], []
    for group in linux.groups(root):
        for line in (linux.contents(group / "cpu.stat") or "").splitlines():
            name, _, value = line.partition(" ")
            scale = {"throttled_usec": 1e-6, "throttled_time": 1e-9}.get(name)  # cgroup v2, v1
            if name == "nr_throttled" and value.isdigit():
                counts.append(int(value))
            elif scale is not None and value.isdigit():
                seconds.append(int(value) * scale)
    return sum(counts) if counts else None, sum(seconds) if seconds else None


def _turbo(root: Path) -> str | None:
    folder = root / "sys/devices/system/cpu"
    never = linux.contents(folder / "intel_pstate/no_turbo")
    if never in ("0", "1"):
        return "off" if never == "1" else "on"
    return _ON_OFF.get(linux.contents(folder / "cpufreq/boost") or "")


def _load_average() -> float | None:
    """Load over the last minute."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def _temperature(root: Path) -> float | None:
    """The hottest thermal zone, in degrees Celsius."""
    found = []
    for zone in (root / "sys/class/thermal").glob("thermal_zone[0-9]*"):
        text = linux.contents(zone / "temp")
        if text and text.lstrip("-").isdigit():
            found.append(int(text) / 1000)
    return max(found, default=None)
