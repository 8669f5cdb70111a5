"""Conclusions from counters: uncertainty, resolution, totals, calibration."""

import pytest

from autotune import meters
from autotune.meters import Fault, Reading
from autotune.records.measurement import Domain, EnergySource


def domain(energy_j: float, duration_s: float, period_s: float | None = 0.001) -> Domain:
    return meters.conclude(
        "d", energy_j, duration_s, period_s=period_s, quantum_j=1e-6, max_w=1000.0
    )


def test_uncertainty_is_two_periods_of_mean_power() -> None:
    found = domain(20.0, 1.0)
    assert found.energy_j == 20.0
    assert found.uncertainty_j == pytest.approx(2 * 0.001 * 20.0 + 1e-6)
    assert found.label == "measured_counter"


def test_window_too_short_is_not_zero() -> None:
    found = domain(0.1, 0.005)  # five periods: below three half-widths
    assert found.energy_j is None
    assert meters.code(found.reason) == "window_too_short"


def test_no_advance_in_a_short_window_is_too_short_in_a_long_one_stale() -> None:
    assert meters.code(domain(0.0, 0.001).reason) == "window_too_short"
    stale = domain(0.0, 1.0)
    assert (stale.energy_j, stale.reason, stale.label) == (None, "stale_counter", "unavailable")


def test_impossible_power_and_no_time() -> None:
    assert meters.code(domain(5000.0, 1.0).reason) == "implausible"
    assert meters.code(domain(1.0, 0.0).reason) == "window_too_short"


def test_unknown_period_asks_for_a_long_window() -> None:
    assert domain(10.0, 1.0, None).energy_j is None
    assert domain(100.0, 10.0, None).energy_j == 100.0


def test_total_needs_every_domain() -> None:
    good = domain(20.0, 1.0)
    whole = meters.window(1.0, [good, good])
    assert whole.total_j == 40.0
    assert whole.label == "measured_counter"
    assert whole.uncertainty_j == pytest.approx(2 * (good.uncertainty_j or 0))
    part = meters.window(1.0, [good, meters.unavailable("x", Fault("permission", "errno 13"))])
    assert (part.total_j, part.uncertainty_j, part.label) == (None, None, "unavailable")
    assert part.reason == "permission: errno 13"
    assert meters.code(part.reason) == "permission"


def test_no_domain_is_no_energy() -> None:
    empty = meters.window(1.0, [], nothing="vm_guest")
    assert (empty.total_j, empty.label, empty.reason) == (None, "unavailable", "vm_guest")
    assert meters.window(1.0, []).reason == "no_interface"


class Ticking:
    """A meter whose clock moves 0.1 ms a read and whose counter moves each ``period_s``."""

    def __init__(self, period_s: float) -> None:
        self.now = 0.0
        self.period_s = period_s
        self.periods_s: dict[str, float] = {}

    def clock(self) -> float:
        return self.now

    def read(self) -> Reading:
        self.now += 1e-4
        moving = int(self.now / self.period_s)
        return Reading(self.now, {"a": moving, "still": 7, "gone": Fault("no_interface")})

    def sources(self) -> tuple[EnergySource, ...]:
        return ()

    def difference(self, *readings: Reading) -> tuple[Domain, ...]:
        return ()

    def max_gap_s(self) -> float | None:
        return None


def test_calibrate_finds_the_update_period_in_bounded_time() -> None:
    meter = Ticking(0.02)
    meters.calibrate(meter, meter.clock, limit_s=0.25)
    assert meter.periods_s == {"a": pytest.approx(0.02, abs=2e-4)}
    assert meter.now < 0.26


def test_calibrate_stops_for_a_clock_that_stands_still() -> None:
    meter = Ticking(0.02)
    meters.calibrate(meter, lambda: 0.0, polls=10)
    assert meter.periods_s == {}


class Register(Ticking):
    """A quick counter of 1 J each period, exact at its edges."""

    def __init__(self) -> None:
        super().__init__(0.001)
        self.periods_s = {"a": 0.001}


def test_edges_are_awaited_at_both_ends() -> None:
    """The work lasts 103.4 periods; between two edges the counter is exact."""
    meter = Register()
    first = meters.edge(meter, closing=False)
    meter.now += 0.1034
    asked_s = meter.now
    last = meters.edge(meter, closing=True)
    assert last.at_s == pytest.approx(asked_s, abs=2e-4)
    seen_s, off_s = meters.span("a", first, last)
    counted = last.counters["a"] - first.counters["a"]  # type: ignore[operator]
    assert counted == pytest.approx(seen_s / 0.001, abs=0.2)  # to a fifth of one update
    assert off_s is not None
    assert off_s <= 0.0013


def test_span_without_edges_is_unsure() -> None:
    first, last = Reading(1.0, {"a": 1}), Reading(3.0, {"a": 5})
    assert meters.span("a", first, last) == (2.0, None)


def test_slow_counters_are_not_awaited() -> None:
    meter = Register()
    meter.periods_s = {"a": 0.1}
    assert meters.edge(meter, closing=True).edges == {}


def test_a_quick_counter_that_stands_still_is_given_up() -> None:
    meter = Register()
    meter.periods_s = {"still": 0.001}
    began = meter.now
    found = meters.edge(meter, closing=False)
    assert found.edges == {}
    assert meter.now - began < 0.003
    stopped = meters.edge(Frozen(), closing=False, polls=5)
    assert stopped.edges == {}


class Frozen(Register):
    """Nothing moves, not even the clock."""

    def read(self) -> Reading:
        return Reading(0.0, {"a": 1})


def test_aligned_edges_narrow_the_half_width() -> None:
    more = {"period_s": 0.001, "quantum_j": 0.0, "max_w": 1000.0}
    loose = meters.conclude("d", 50.0, 1.0, **more)  # type: ignore[arg-type]
    tight = meters.conclude("d", 50.0, 1.0, edge_s=0.0002, **more)  # type: ignore[arg-type]
    assert (loose.uncertainty_j, tight.uncertainty_j) == (pytest.approx(0.1), pytest.approx(0.01))


@pytest.mark.parametrize(("period_s", "relative"), [(0.0, 0.1), (0.1, 0.0), (-1.0, 0.1)])
def test_shortest_window_refuses(period_s: float, relative: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        meters.shortest_window(period_s, relative)


def test_shortest_window() -> None:
    assert meters.shortest_window(0.1, 0.05) == pytest.approx(4.0)
    assert meters.shortest_window(0.1, 0.05, aligned=True) == pytest.approx(2.0)
