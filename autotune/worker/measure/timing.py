"""Single calls, each timed: warm-up, the closed loop, and the causes of slow calls.

    warm_up -> (settled, median time of a call) -> closed | open_loop.serve -> every call's ns
                                                     `- SlowCalls: their causes

No call is dropped.  A call over twice the median is *slow*; its cause is looked for right after
it, outside the timing: a garbage collection during it, or an involuntary context switch, cgroup
throttling or steal since the last check.  Stdlib only.

What this does not know: causes that the kernel does not count (frequency, caches, page faults).
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

MIN_CALLS = 30
"""Timed even beyond ``most_s``, up to `OVERRUN` times that."""
OVERRUN = 5
_SETTLED = 0.02
_WARM_CALLS = 10
_WARM_S = 0.02
_MOST_WINDOW = 20_000
_SLOW = 2.0
_CHECK_CALLS = 64
_CHECK_NS = 20_000_000
_READS = 100_000
_STEPS = 200


class Clock(NamedTuple):
    """The clocks of a measurement; tests use simulated ones."""

    now_ns: Callable[[], int] = time.perf_counter_ns
    cpu_ns: Callable[[], int] = time.process_time_ns
    sleep_s: Callable[[float], None] = time.sleep


class Warm(NamedTuple):
    """How the warm-up ended.  ``median_ns`` is the last window's; infinite if there was none."""

    calls: int
    settled: bool
    median_ns: float


def resolution_ns(clock: Clock) -> int | None:
    """The smallest step of the clock; None where it does not advance by itself."""
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
    """Times of 10 calls and 20 ms (fewer calls of a slow model), not counting the slowest call."""
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
    watch: "SlowCalls",
    wanted_s: float,
) -> list[int]:
    """Service times of one call after another, in nanoseconds.

    Continues for ``min_calls`` and ``wanted_s``, but no longer than ``most_s`` (a slow candidate
    must not use up the budget), and never past ``max_calls``.
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
        watch.add(started, ended)
        elapsed, count = ended - began, len(taken)
        if elapsed >= wanted_ns and count >= job.min_calls:
            break
        if elapsed >= most_ns and (count >= MIN_CALLS or elapsed >= OVERRUN * most_ns):
            break
    return taken


class SlowCalls:
    """Counts slow calls and what disturbed them.

    A check costs a system call, and reading the kernel's files 50 us: checks follow slow calls and
    every 64th call, the files are read at most every 20 ms.
    """

    def __init__(self, median_ns: float, clock: Clock) -> None:
        self._slow_ns = _SLOW * median_ns
        self._clock = clock
        self._collected: list[int] = []
        self._calls = 0
        self._causes = dict.fromkeys(("slow", *map("slow_{}".format, CAUSES)), 0)
        self._read_ns = clock.now_ns()
        self._counters = interference.counters()
        self._switches = self._first_switches = _switches()

    @contextmanager
    def collections(self) -> Iterator[None]:
        """Record garbage collections (the collector stays on) while this is open."""
        gc.callbacks.append(self._on_collection)
        try:
            yield
        finally:
            gc.callbacks.remove(self._on_collection)

    def _on_collection(self, phase: str, info: dict[str, int]) -> None:
        del info
        if phase == "start":
            self._collected.append(self._clock.now_ns())

    def add(self, started_ns: int, ended_ns: int) -> None:
        """Count one call that has just ended."""
        self._calls += 1
        if ended_ns - started_ns > self._slow_ns:
            self._slow(started_ns, ended_ns)
        elif not self._calls % _CHECK_CALLS:
            self._switches = _switches()

    def _slow(self, started_ns: int, ended_ns: int) -> None:
        causes = set()
        if self._collected and started_ns <= self._collected[-1] <= ended_ns:
            causes.add("gc")
        switches = _switches()
        if switches > self._switches:
            causes.add("context_switch")
        self._switches = switches
        if ended_ns - self._read_ns >= _CHECK_NS:
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
