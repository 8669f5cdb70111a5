"""Open-loop load: requests arrive on a schedule, whether or not the last one is answered.

    arrivals(rate, ...) -> when each request is due
    serve(...) -> service time (start to end) and response time (due to end) of each

One server, first come first served.  A stall delays every request that falls due meanwhile,
and each of them counts its wait; a closed loop would not have sent them (coordinated omission;
Tene, "How NOT to measure latency").  Stdlib only.

What this does not know: a network, and several servers.
"""

import math
import random
from typing import Literal, NamedTuple

from autotune.records.job import Measure
from autotune.worker.measure.timing import (
    MIN_CALLS,
    OVERRUN,
    Call,
    Clock,
    Predict,
    SlowCalls,
)

_SPIN_NS = 100_000
"""Busy-waiting before a request is due, as sleep ends some 60 us late."""


class Served(NamedTuple):
    """Nanoseconds of each answered request; ``timeouts`` counts those never answered."""

    service_ns: list[int]
    response_ns: list[int]
    timeouts: int


def arrivals(
    rate_per_s: float, count: int, kind: Literal["poisson", "fixed"], seed: int
) -> list[int]:
    """Nanoseconds after the start at which requests are due, ascending.

    Raises:
        ValueError: the rate is not above 0.
    """
    if not (rate_per_s > 0 and math.isfinite(rate_per_s)):
        raise ValueError(f"a load of {rate_per_s:g} requests per second: it must be above 0")
    if kind == "fixed":
        return [round(number * 1e9 / rate_per_s) for number in range(count)]
    draw, due, out = random.Random(seed), 0.0, []
    for _ in range(count):
        due += draw.expovariate(rate_per_s)
        out.append(round(due * 1e9))
    return out


def requests(job: Measure, wanted_s: float) -> list[int]:
    """Due times of one launch's requests: ``min_calls`` and ``wanted_s``, cut off at ``most_s`` as
    long as some 30 requests remain.
    """
    assert job.load_per_s is not None
    count = max(job.min_calls, math.ceil(job.load_per_s * wanted_s))
    due = arrivals(job.load_per_s, min(count, job.max_calls), job.arrivals, job.seed)
    most_ns = int(job.most_s * 1e9)
    kept = sum(at <= most_ns for at in due)
    patient = sum(at <= OVERRUN * most_ns for at in due)
    return due[: max(kept, min(MIN_CALLS, patient), 1)]


def serve(
    predict: Predict,
    calls: list[Call],
    due_ns: list[int],
    job: Measure,
    clock: Clock,
    watch: SlowCalls,
) -> Served:
    """Answer every request of the schedule.

    After the last due time, a backlog may take as long as the schedule (at least ``most_s``);
    requests that are still unanswered then have timed out.
    """
    now, size = clock.now_ns, len(calls)
    service: list[int] = []
    response: list[int] = []
    began = now()
    last = began + due_ns[-1] + max(due_ns[-1], int(job.most_s * 1e9))
    for number, offset in enumerate(due_ns):
        due = began + offset
        _wait(due, clock)
        args, kwargs = calls[number % size]
        started = now()
        if started > last:
            break
        predict(*args, **kwargs)
        ended = now()
        service.append(ended - started)
        response.append(ended - due)
        watch.add(started, ended)
    return Served(service, response, len(due_ns) - len(service))


def _wait(until_ns: int, clock: Clock) -> None:
    while (left := until_ns - clock.now_ns()) > 0:
        if left > _SPIN_NS:
            clock.sleep_s((left - _SPIN_NS) * 1e-9)
