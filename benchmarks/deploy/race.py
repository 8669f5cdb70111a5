"""Times several deployments side by side, and their ratio with a 95 % interval.

    launch 1:  a b c d | d c b a | a b c d | d c b a     each letter a block of single calls,
    launch 2:  ...                                        each contestant its own process

Each deployment has a process of its own for the length of a launch, which sleeps while the others
are timed.  Medians of blocks of the same cycle (forwards and backwards) are compared as log-ratios,
averaged over a launch; launches are the samples of Student's t.  A drift of the machine's speed
is in both sides of a ratio.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autotune.stats import launch_ratio
from benchmarks._common.rows import ROOT

PAUSE_S = 0.02
"""Between blocks: by then threads that spin after a call are asleep."""
UNTIMED = {"GOMP_SPINCOUNT": "50000"}
"""Environment of processes whose speed is not measured: waiting threads sleep soon, as other work
may need the core.  Without any spinning a GRU's training takes twice as long on 2 cores.
"""
_PATIENCE_S = 600.0
Launches = Sequence[Sequence[float]]
"""[launches][cycles] of one contestant: median seconds of a call."""


class ContestantError(Exception):
    """A contestant's process ended, with the last line that it wrote."""


class Entry(NamedTuple):
    """A folder to serve, and the rows to serve it with."""

    folder: Path
    rows: Path
    batch: int
    threads: int


class Contestant:
    """One process, `benchmarks.deploy.serve`; ``ready`` waits for it to have loaded.

    ``untimed``: its threads do not spin for long (`UNTIMED`).
    """

    def __init__(self, entry: Entry, untimed: bool = False) -> None:
        env = dict(os.environ, PYTHONPATH=str(ROOT))
        env |= UNTIMED if untimed else {}
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - `end` closes it
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.deploy.serve", str(entry.folder)),
                *(str(entry.rows), str(entry.batch), str(entry.threads)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env=env,
        )

    def ready(self) -> dict[str, Any]:
        """Load and first call, in seconds.

        Raises:
            ContestantError: it ended instead.
        """
        assert self._process.stdout is not None
        watchdog = threading.Timer(_PATIENCE_S, self._process.kill)
        watchdog.start()
        line = self._process.stdout.readline()
        watchdog.cancel()
        if not line:
            self._process.wait()
            self._log.seek(0)
            said = self._log.read().strip().splitlines()[-1:] or ["it said nothing"]
            raise ContestantError(said[0])
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `ready` raises the reason
        return self.ready()

    def end(self) -> None:
        """Close its input, on which it ends; kill it where it does not."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._log.close()


class Timed(NamedTuple):
    """One contestant's launches, and its medians of load and first call."""

    launches: list[list[float]]
    load_s: list[float]
    first_s: list[float]


def race(
    entries: Mapping[str, Entry], *, launches: int, cycles: int, block_s: float
) -> dict[str, Timed]:
    """Every contestant's medians; all of them are restarted ``launches`` times."""
    found = {name: Timed([], [], []) for name in entries}
    for number in range(launches):
        alive = {name: Contestant(entry) for name, entry in entries.items()}
        try:
            for name, one in alive.items():
                answer = one.ready()
                found[name].load_s.append(answer["load_s"])
                found[name].first_s.append(answer["first_s"])
            for one in alive.values():
                one.ask(warm=2 * block_s)
            for name, medians in turns(alive, number, cycles, block_s).items():
                found[name].launches.append(medians)
        finally:
            for one in alive.values():
                one.end()
    return found


def turns(
    alive: Mapping[str, Any], number: int, cycles: int, block_s: float
) -> dict[str, list[float]]:
    """There and back, ``cycles`` times; each launch begins with another contestant."""
    names = list(alive)
    names = names[number % len(names) :] + names[: number % len(names)]
    medians: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(cycles):
        pair: dict[str, list[float]] = {name: [] for name in names}
        for name in (*names, *reversed(names)):
            time.sleep(PAUSE_S)
            pair[name].append(alive[name].ask(block=block_s)["p50_s"])
        for name, (there, back) in pair.items():
            medians[name].append(math.sqrt(there * back))
    return medians


class Ratio(NamedTuple):
    """Ours over theirs; ``low`` and ``high`` are 95 % bounds, each by itself."""

    value: float
    low: float
    high: float


def ratio(ours: Launches, theirs: Launches) -> Ratio:
    """Paired by launch and cycle; at least two launches.

    Raises:
        ValueError: fewer launches, or another number of them on each side.
    """
    means = []
    for mine, other in zip(ours, theirs, strict=True):
        logs = [math.log(a / b) for a, b in zip(mine, other, strict=True)]
        means.append(math.fsum(logs) / len(logs))
    if len(means) < 2:
        raise ValueError(f"{len(means)} launches: bounds need at least 2")
    mean = math.fsum(means) / len(means)
    error = statistics.stdev(means) / math.sqrt(len(means))
    half = launch_ratio.student(0.05, len(means) - 1) * error
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def typical(launches: Launches) -> float:
    """The geometric mean of all medians."""
    logs = [math.log(value) for launch in launches for value in launch]
    return math.exp(math.fsum(logs) / len(logs))
