"""Open-loop load: schedules, waiting, backlogs."""

from typing import Any

import numpy as np
import pytest

from autotune.records.job import Measure
from autotune.worker.measure import open_loop, timing
from tests.support.latency_sim import Ticking

CALL: list[timing.Call] = [((), {})]


def job(**changes: Any) -> Measure:
    fields: dict[str, Any] = {"artifact": "a", "rows": "r", "batch_size": 1, "threads": 1}
    return Measure(**fields | {"load_per_s": 200.0, "min_calls": 30, "time_s": 0.0} | changes)


def serve(time_: Ticking, asked: Measure, service_s: Any) -> open_loop.Served:
    """Serve on a simulated clock; ``service_s(n)`` is what the n-th request takes."""
    count = 0

    def predict() -> None:
        nonlocal count
        time_.spend(service_s(count))
        count += 1

    clock = time_.clock()
    watch = timing.SlowCalls(1e9, clock)
    return open_loop.serve(predict, CALL, open_loop.requests(asked, 0.0), asked, clock, watch)


def test_poisson_arrivals_are_seeded_and_have_their_rate() -> None:
    due = open_loop.arrivals(200, 4000, "poisson", 3)
    assert due == open_loop.arrivals(200, 4000, "poisson", 3)
    assert due != open_loop.arrivals(200, 4000, "poisson", 4)
    gaps = np.diff(due) * 1e-9
    assert (gaps >= 0).all()
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.08)  # exponential


def test_fixed_arrivals() -> None:
    assert open_loop.arrivals(200, 3, "fixed", 0) == [0, 5_000_000, 10_000_000]


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_a_rate_must_be_above_zero(rate: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        open_loop.arrivals(rate, 3, "fixed", 0)


@pytest.mark.parametrize(
    ("rate", "changes", "count"),
    [
        (200, {"min_calls": 104}, 104),
        (200, {"min_calls": 104, "max_calls": 50}, 50),
        (20, {"min_calls": 1000, "arrivals": "fixed"}, 81),  # 4 s
        (5, {"min_calls": 1000, "arrivals": "fixed"}, 30),  # 20 calls in 4 s: some 30 at least
        (0.01, {"min_calls": 1000, "arrivals": "fixed"}, 1),
    ],
)
def test_how_many_requests(rate: float, changes: dict[str, Any], count: int) -> None:
    assert len(open_loop.requests(job(load_per_s=rate, **changes), 0.0)) == count


def test_the_wanted_time_lengthens_the_schedule() -> None:
    assert len(open_loop.requests(job(), 1.0)) == 200


def test_an_idle_server_answers_at_once() -> None:
    found = serve(Ticking(), job(arrivals="fixed"), lambda n: 0.001)
    assert found.timeouts == 0
    assert len(found.service_ns) == len(found.response_ns) == 30
    assert max(found.response_ns) < 1.01e6


def test_a_backlog_is_worked_off_and_the_rest_times_out() -> None:
    asked = job(arrivals="fixed", min_calls=400, most_s=2.0)  # due within 2 s, 10 ms each
    found = serve(Ticking(), asked, lambda n: 0.010)
    assert found.timeouts == 0
    found = serve(Ticking(), asked, lambda n: 0.020)  # 8 s of work in 4 s
    assert len(found.service_ns) + found.timeouts == 400
    assert 190 <= found.timeouts <= 210
