"""What timing a call adds to it.  ``python -m benchmarks.overhead``

The same calls of about 200 us in a bare loop and in the one that measures (`timing.closed`: two
clock readings a call, and a search for causes of slow calls), in short blocks, paired and in
alternating order.  The 95 % upper bound of the median ratio of the pairs must lie under 1.01.
"""

import hashlib
import statistics
import sys
import time

from autotune.records.job import Measure
from autotune.stats.quantile import Tail
from autotune.worker.measure import timing

PAIRS = 1500
CALLS = 25
CALL_S = 200e-6
MOST = 1.01


def workload(call_s: float = CALL_S) -> timing.Call:
    """Arguments with which one hash takes about ``call_s``."""
    size = 100_000
    probe = b"\0" * size
    taken = min(timing.timed(_hash, ((probe,), {}), timing.Clock()) for _ in range(200))
    return (b"\0" * max(1, round(size * call_s * 1e9 / taken)),), {}


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def bare(calls: list[timing.Call], count: int) -> int:
    """Nanoseconds of ``count`` calls in a loop that measures nothing."""
    began = time.perf_counter_ns()
    for number in range(count):
        args, kwargs = calls[number % len(calls)]
        _hash(*args, **kwargs)
    return time.perf_counter_ns() - began


def measured(calls: list[timing.Call], count: int, watch: timing.SlowCalls, job: Measure) -> int:
    """Nanoseconds of ``count`` calls, each timed by the product."""
    began = time.perf_counter_ns()
    timing.closed(_hash, calls, job, timing.Clock(), watch, 0.0)
    return time.perf_counter_ns() - began


def ratios(pairs: int = PAIRS, count: int = CALLS) -> list[float]:
    """Measured over bare time of each pair of blocks."""
    calls = [workload()]
    job = Measure(
        artifact="", rows="", batch_size=1, threads=1, min_calls=count, max_calls=count, time_s=0.0
    )
    clock = timing.Clock()
    usual = statistics.median(timing.timed(_hash, calls[0], clock) for _ in range(200))
    watch = timing.SlowCalls(usual, clock)
    out = []
    with watch.collections():
        for pair in range(pairs):
            if pair % 2:
                plain = bare(calls, count)
                out.append(measured(calls, count, watch, job) / plain)
            else:
                timed = measured(calls, count, watch, job)
                out.append(timed / bare(calls, count))
    return out


def main() -> int:
    """Print the ratio; 0 if its upper bound is under 1 %."""
    found = ratios()
    middle = statistics.median(found)
    low, high = Tail([found], 50.0).bounds(0.025)
    shown = "none" if low is None or high is None else f"{low:.4f} to {high:.4f}"
    good = high is not None and high < MOST
    print(f"{PAIRS} pairs of {CALLS} calls of about {CALL_S * 1e6:.0f} us")
    print(f"time with measuring / without: {middle:.4f}, 95 % interval {shown}")
    print(f"measuring adds under {MOST - 1:.0%}: {'PASS' if good else 'FAIL'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
