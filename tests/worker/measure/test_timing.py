"""The closed loop on simulated clocks: how long it goes on, and what disturbed it."""

import gc
import itertools
from typing import Any

import pytest

from autotune.records.job import Measure
from autotune.worker.host import interference
from autotune.worker.host.interference import Counters
from autotune.worker.measure import timing
from tests.support.latency_sim import Ticking

CALL: list[timing.Call] = [((), {})]


def job(**changes: Any) -> Measure:
    fields: dict[str, Any] = {"artifact": "a", "rows": "r", "batch_size": 1, "threads": 1}
    return Measure(**fields | {"min_calls": 104, "time_s": 0.0} | changes)


def closed(
    call_s: Any, usual_s: float = 1e9, wanted_s: float = 0.0, **changes: Any
) -> tuple[list[int], dict[str, int]]:
    time_ = Ticking()
    numbers = itertools.count()
    clock = time_.clock()
    watch = timing.SlowCalls(usual_s * 1e9, clock)
    with watch.collections():
        taken = timing.closed(
            lambda: time_.spend(call_s(next(numbers))), CALL, job(**changes), clock, watch, wanted_s
        )
    return taken, watch.tags()


@pytest.mark.parametrize(
    ("call_s", "wanted_s", "calls"),
    [
        (0.001, 0.0, 104),
        (0.001, 0.7, 700),
        (0.055, 0.7, 73),  # cannot meet the limit: 4 s
        (0.2, 0.7, 30),  # very: the least
        (3.0, 0.7, 7),  # beyond hope: 20 s
        (0.0001, 9.0, 5000),
    ],
)
def test_how_long(call_s: float, wanted_s: float, calls: int) -> None:
    taken, _ = closed(lambda n: call_s, wanted_s=wanted_s)
    assert calls <= len(taken) <= calls + 1


def test_the_clock_of_a_real_machine_is_fine() -> None:
    found = timing.resolution_ns(timing.Clock())
    assert found is not None
    assert found < 1_000_000
    assert timing.resolution_ns(timing.Clock(now_ns=lambda: 5)) is None
    assert timing.resolution_ns(Ticking(step_ns=1_000_000).clock()) == 1_000_000


def test_slow_calls_are_tagged_with_their_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = {"switches": 0, "throttled": 0, "steal": 0.0}
    monkeypatch.setattr(timing, "_switches", lambda: kernel["switches"])
    monkeypatch.setattr(
        interference,
        "counters",
        lambda: Counters(nr_throttled=int(kernel["throttled"]), steal_s=kernel["steal"]),
    )

    def call(n: int) -> float:
        if n == 10:
            gc.collect()
        elif n == 20:
            kernel["switches"] += 1
        elif n == 40:
            kernel["throttled"] += 1
        elif n == 60:
            kernel["steal"] += 0.01
        return 0.03 if n in (10, 20, 40, 60, 80) else 0.001

    taken, tags = closed(call, usual_s=0.001)
    assert len(taken) == 104  # none dropped
    assert sum(ns > 2e6 for ns in taken) == 5
    assert tags == {
        "gc": 1,
        "context_switch": 1,
        "slow": 5,
        "slow_gc": 1,
        "slow_context_switch": 1,
        "slow_throttled": 1,
        "slow_steal": 1,
        "slow_unexplained": 1,
    }


def test_an_old_switch_explains_no_slow_call(monkeypatch: pytest.MonkeyPatch) -> None:
    switches = 0
    monkeypatch.setattr(timing, "_switches", lambda: switches)

    def call(n: int) -> float:
        nonlocal switches
        switches += n == 5  # between looks of 64 calls, in a call that was not slow
        return 0.05 if n == 100 else 0.001

    _, tags = closed(call, usual_s=0.001)
    assert (tags["context_switch"], tags["slow_context_switch"]) == (1, 0)
    assert tags["slow_unexplained"] == 1


def test_a_warm_up_ends_when_two_windows_agree() -> None:
    time_ = Ticking(read_ns=0)
    numbers = itertools.count()
    found = timing.warm_up(
        lambda: time_.spend(0.004 if next(numbers) < 30 else 0.002), CALL, 1.5, time_.clock()
    )
    assert found.settled
    assert found.median_ns == pytest.approx(2e6) or found.median_ns == pytest.approx(4e6)
    assert found.calls >= 20


def test_a_clock_that_stands_still_does_not_hang_the_warm_up() -> None:
    clock = timing.Clock(now_ns=lambda: 7)
    assert timing.warm_up(lambda: None, CALL, 1.5, clock).settled


def test_no_warm_up() -> None:
    found = timing.warm_up(lambda: None, CALL, 0.0, timing.Clock())
    assert (found.calls, found.settled, found.median_ns) == (0, False, float("inf"))
