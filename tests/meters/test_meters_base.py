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

    def guard_s(self) -> float | None:
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
