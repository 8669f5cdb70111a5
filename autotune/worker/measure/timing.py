"""Single calls, each timed: warm-up, the closed loop, and what disturbed the slow ones.

    warm_up -> (settled, usual time of a call) -> closed | load.serve -> every call's ns
                                                     `- Watch: causes of slow calls

No call is dropped.  A call over twice its usual time is *slow*; its cause is looked for
right after it, outside the timing: a garbage collection inside it, or an involuntary
context switch, cgroup throttling or steal since the last look.  Stdlib only.

Does not know a cause that the kernel does not count (frequency, caches, page faults).
"""

import gc
import math
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, NamedTuple

from autotune.records.job import Measure
from autotune.worker.host import interference

Predict = Callable[..., Any]
Call = tuple[tuple[Any, ...], dict[str, Any]]

LEAST_CALLS = 30
"""Timed however slow they are, unless they take `PATIENCE` times the cap."""
PATIENCE = 5
_SETTLED = 0.02
_WARM_CALLS = 10
_WARM_S = 0.02
_MOST_WINDOW = 20_000
_SLOW = 2.0
_LOOK_CALLS = 64
_LOOK_NS = 20_000_000
_READS = 100_000
_STEPS = 200


class Clock(NamedTuple):
    """Time as the measurement sees it; tests put simulated clocks in its place."""

    now_ns: Callable[[], int] = time.perf_counter_ns
    cpu_ns: Callable[[], int] = time.process_time_ns
    sleep_s: Callable[[float], None] = time.sleep


class Warm(NamedTuple):
    """How the warm-up ended.  ``usual_ns`` is the last window's median; infinite if none."""

    calls: int
    settled: bool
    usual_ns: float


def resolution_ns(clock: Clock) -> int | None:
    """The smallest step in which the clock moves; None where it does not move by itself."""
    least: int | None = None
    steps, last = 0, clock.now_ns()
    for _ in range(_READS):
        now = clock.now_ns()
        if now > last:
            least = now - last if least is None else min(least, now - last)
            steps += 1
            if steps == _STEPS:
                return least
        last = now
    return least


def timed(predict: Predict, call: Call, clock: Clock) -> int:
    """Nanoseconds of one call."""
    args, kwargs = call
    started = clock.now_ns()
    predict(*args, **kwargs)
    return clock.now_ns() - started


def warm_up(predict: Predict, calls: list[Call], warmup_s: float, clock: Clock) -> Warm:
    """Call until two windows in a row have medians within 2 %, or the time is spent.

    The slowest call does not count as time spent: a compilation must not use up the
    warm-up of the code that it made.
    """
    previous = math.inf
    done = spent = slowest = 0
    while spent - slowest < warmup_s * 1e9:
        window = _window(predict, calls, done, warmup_s, clock)
        done += len(window)
        spent, slowest = spent + sum(window), max(slowest, *window)
        middle = median(window)
        if abs(middle - previous) <= _SETTLED * previous < math.inf:
            return Warm(done, True, middle)
        previous = middle
    return Warm(done, False, previous)


def _window(
    predict: Predict, calls: list[Call], done: int, warmup_s: float, clock: Clock
) -> list[int]:
    """10 calls and 20 ms, or fewer calls of a slow model; its slowest call takes no time."""
    window: list[int] = []
    spent = slowest = 0
    while len(window) < _MOST_WINDOW:
        window.append(timed(predict, calls[(done + len(window)) % len(calls)], clock))
        slowest = max(slowest, window[-1])
        spent += window[-1]
        elapsed = spent - slowest
        if len(window) >= _WARM_CALLS and elapsed >= _WARM_S * 1e9:
            break
        if len(window) >= 3 and elapsed >= warmup_s * 1e9 / 6:
            break
    return window


def closed(
    predict: Predict,
    calls: list[Call],
    job: Measure,
    clock: Clock,
    watch: "Watch",
    wanted_s: float,
) -> list[int]:
    """One call after another: service times in nanoseconds.

    Goes on for ``min_calls`` and ``wanted_s``, but no longer than ``most_s`` (a hopeless
    candidate must not eat the budget), and never past ``max_calls``.
    """
    now, size = clock.now_ns, len(calls)
    wanted_ns, most_ns = int(wanted_s * 1e9), int(job.most_s * 1e9)
    taken: list[int] = []
    began = now()
    while len(taken) < job.max_calls:
        args, kwargs = calls[len(taken) % size]
        started = now()
        predict(*args, **kwargs)
        ended = now()
        taken.append(ended - started)
        watch.saw(started, ended)
        elapsed, count = ended - began, len(taken)
        if elapsed >= wanted_ns and count >= job.min_calls:
            break
        if elapsed >= most_ns and (count >= LEAST_CALLS or elapsed >= PATIENCE * most_ns):
            break
    return taken


class Watch:
    """Counts what disturbed the calls.

    A look costs a system call, and reading files 50 us: looks come after slow calls and
    every 64 calls, the files are read at most every 20 ms.
    """

    def __init__(self, usual_ns: float, clock: Clock) -> None:
        self._slow_ns = _SLOW * usual_ns
        self._clock = clock
        self._collected: list[int] = []
        self._calls = 0
        self._causes = dict.fromkeys(("slow", *map("slow_{}".format, CAUSES)), 0)
        self._read_ns = clock.now_ns()
        self._counters = interference.counters()
        self._switches = self._first_switches = _switches()

    @contextmanager
    def collections(self) -> Iterator[None]:
        """Note when the garbage collector, left on, collects meanwhile."""
        gc.callbacks.append(self._note)
        try:
            yield
        finally:
            gc.callbacks.remove(self._note)

    def _note(self, phase: str, info: dict[str, int]) -> None:
        del info
        if phase == "start":
            self._collected.append(self._clock.now_ns())

    def saw(self, started_ns: int, ended_ns: int) -> None:
        """One call has ended."""
        self._calls += 1
        if ended_ns - started_ns > self._slow_ns:
            self._slow(started_ns, ended_ns)
        elif not self._calls % _LOOK_CALLS:
            self._switches = _switches()

    def _slow(self, started_ns: int, ended_ns: int) -> None:
        causes = set()
        if self._collected and started_ns <= self._collected[-1] <= ended_ns:
            causes.add("gc")
        switches = _switches()
        if switches > self._switches:
            causes.add("context_switch")
        self._switches = switches
        if ended_ns - self._read_ns >= _LOOK_NS:
            causes |= self._kernel(ended_ns)
        self._causes["slow"] += 1
        for cause in causes or {"unexplained"}:
            self._causes[f"slow_{cause}"] += 1

    def _kernel(self, now_ns: int) -> set[str]:
        found, before = interference.counters(), self._counters
        self._counters, self._read_ns = found, now_ns
        causes = set()
        if (found.nr_throttled or 0) > (before.nr_throttled or 0):
            causes.add("throttled")
        if (found.steal_s or 0.0) > (before.steal_s or 0.0):
            causes.add("steal")
        return causes

    def tags(self) -> dict[str, int]:
        """Counts of collections, involuntary context switches, slow calls and their causes."""
        switches = _switches() - self._first_switches
        return {"gc": len(self._collected), "context_switch": switches} | self._causes


CAUSES = ("gc", "context_switch", "throttled", "steal", "unexplained")


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
