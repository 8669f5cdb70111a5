"""A powercap tree that advances with CPU time: ``python powercap_sim.py DIR --idle-w 10``.

    DIR/intel-rapl:0                 name=package-0   idle + per-core watts * cores in use
    DIR/intel-rapl:0/intel-rapl:0:0  name=dram        a constant

CPU time is that of the tree of processes below ``--pid`` in nanoseconds, or else of the
whole machine in clock ticks.  A file is replaced as a whole, so a reader never sees half a
number (it is padded with zeros).  Runs until it is killed or its parent ends; prints
``ready`` when the tree stands.
"""

import argparse
import contextlib
import os
import time
from pathlib import Path

PERIOD_S = 0.002
LOOK_S = 0.05
RANGE_UJ = 262_143_328_850


class MachineTime:
    """CPU seconds of all processors, in clock ticks."""

    def __call__(self) -> float:
        words = Path("/proc/stat").read_text().partition("\n")[0].split()
        ticks = [int(word) for word in words[1:9]]
        return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


class TreeTime:
    """CPU seconds of one process and its descendants, itself excepted."""

    def __init__(self, pid: int) -> None:
        self._top = pid
        self._last: dict[Path, int] = {}
        self._total_ns = 0
        self._looked_s = -1.0
        self._look()
        self._last = {task: _ran_ns(task) for task in self._last}

    def __call__(self) -> float:
        if time.monotonic() - self._looked_s > LOOK_S:
            self._look()
        for task, before in list(self._last.items()):
            ran = _ran_ns(task)
            if ran < 0:
                del self._last[task]
            else:
                self._total_ns += max(0, ran - before)
                self._last[task] = ran
        return self._total_ns * 1e-9

    def _look(self) -> None:
        self._looked_s = time.monotonic()
        for pid in _family(self._top) - {os.getpid()}:
            for task in _tasks(pid):
                self._last.setdefault(task, 0)


class Counter:
    """One ``energy_uj``.

    Two files take turns behind its name: the one that a reader may have open is never
    written, and the disk is spared a new file every 2 ms.
    """

    def __init__(self, zone: Path, range_uj: int) -> None:
        self._path = zone / "energy_uj"
        self._next = zone / ".next"
        self._range_uj = range_uj
        self._slots = [zone / ".slot0", zone / ".slot1"]
        self._files = [os.open(slot, os.O_RDWR | os.O_CREAT, 0o644) for slot in self._slots]
        self._turn = 0
        self.put(0.0)

    def put(self, energy_j: float) -> None:
        """Show these joules, modulo the range."""
        text = f"{int(energy_j * 1e6) % self._range_uj:020d}\n"
        os.pwrite(self._files[self._turn], text.encode(), 0)
        self._next.unlink(missing_ok=True)
        self._next.hardlink_to(self._slots[self._turn])
        self._next.replace(self._path)
        self._turn = 1 - self._turn


def make_tree(root: Path, range_uj: int = RANGE_UJ) -> tuple[Counter, Counter]:
    """Write the tree at zero and return the package's and the dram's counter."""
    package = root / "intel-rapl:0"
    dram = package / "intel-rapl:0:0"
    dram.mkdir(parents=True, exist_ok=True)
    for zone, name in ((package, "package-0"), (dram, "dram")):
        (zone / "name").write_text(f"{name}\n")
        (zone / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return Counter(package, range_uj), Counter(dram, range_uj)


def main() -> None:
    args = _arguments()
    cpu_s = TreeTime(args.pid) if args.pid else MachineTime()
    package, dram = make_tree(args.root, args.range_uj)
    parent, started, begin = os.getppid(), time.monotonic(), cpu_s()
    with contextlib.suppress(OSError):
        os.nice(-10)  # hardware does not wait for its turn
    print("ready", flush=True)
    while os.getppid() == parent:
        time.sleep(PERIOD_S)
        elapsed = time.monotonic() - started
        package.put(args.idle_w * elapsed + args.per_core_w * (cpu_s() - begin))
        dram.put(args.dram_w * elapsed)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path, metavar="DIR")
    parser.add_argument("--idle-w", type=float, default=10.0)
    parser.add_argument("--per-core-w", type=float, default=20.0)
    parser.add_argument("--dram-w", type=float, default=1.0)
    parser.add_argument("--pid", type=int)
    parser.add_argument("--range-uj", type=int, default=RANGE_UJ)
    return parser.parse_args()


def _ran_ns(task: Path) -> int:
    """Nanoseconds on a processor so far; -1 when the task has ended."""
    try:
        return int((task / "schedstat").read_bytes().split()[0])
    except (OSError, IndexError):
        return -1


def _family(top: int) -> set[int]:
    """A process and its descendants."""
    if not Path(f"/proc/{top}/task/{top}/children").exists():
        return _family_by_parents(top)
    found, waiting = set(), [top]
    while waiting:
        pid = waiting.pop()
        found.add(pid)
        for task in _tasks(pid):
            try:
                waiting += map(int, (task / "children").read_bytes().split())
            except OSError:
                continue
    return found


def _family_by_parents(top: int) -> set[int]:
    """The same for a kernel without lists of children: every process is looked at."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_bytes()
        except OSError:
            continue
        parent = int(stat.rpartition(b")")[2].split()[1])
        children.setdefault(parent, []).append(int(entry.name))
    found, waiting = set(), [top]
    while waiting:
        pid = waiting.pop()
        found.add(pid)
        waiting += children.get(pid, [])
    return found


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


if __name__ == "__main__":
    main()
