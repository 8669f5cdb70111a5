"""Power by windows of a made-up meter: what is kept, what is taken again, what stays unknown."""

from collections.abc import Callable

import pytest

from autotune.records.hardware import Leaf
from autotune.records.measurement import Domain, EnergySource, EnergyWindow
from autotune.worker.machine import power_draw

RAPL = EnergySource(
    name="rapl", domains=("rapl:package-0",), label="measured_counter", update_period_s=0.001
)
GUEST = EnergySource(name="rapl", label="unavailable", reason="vm_guest")


def domain(joules: float | None, name: str = "rapl:package-0", **more: object) -> Domain:
    label = "unavailable" if joules is None else "measured_counter"
    return Domain(name=name, energy_j=joules, label=label, **more)  # type: ignore[arg-type]


def window(*domains: Domain, foreign: float = 0.0, seconds: float = 2.0) -> EnergyWindow:
    known = [d.energy_j for d in domains if d.energy_j is not None]
    return EnergyWindow(
        duration_s=seconds,
        domains=domains,
        total_j=sum(known),
        label="measured_counter",
        foreign_load=foreign,
    )


class Meter:
    """Answers with these windows in turn (the last one again and again); counts them."""

    def __init__(self, *windows: EnergyWindow, sources: tuple[EnergySource, ...] = (RAPL,)) -> None:
        self.windows, self._sources, self.closed = list(windows), sources, 0

    def sources(self) -> tuple[EnergySource, ...]:
        return self._sources

    def open(self) -> int:
        return 1

    def close(self, token: int) -> EnergyWindow:
        self.closed += 1
        return self.windows.pop(0) if len(self.windows) > 1 else self.windows[0]


class Clock:
    """Moves when it is slept on, and a tenth of a second a look."""

    now = 0.0
    slept = 0.0

    def __call__(self) -> float:
        self.now += 0.1
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept = seconds


def probe(meter: Meter | None, over: Callable[[], bool] = lambda: False) -> power_draw.PowerProbe:
    clock = Clock()
    return power_draw.PowerProbe(meter, over=over, clock=clock, sleep=clock.sleep)


def test_idle_power_is_the_median_of_three_windows() -> None:
    watts = probe(Meter(*(window(domain(j, uncertainty_j=1.0)) for j in (20.0, 30.0, 22.0))))
    watts.idle()
    assert watts.figures["idle_power_w"] == Leaf(
        value=11.0,
        unit="W",
        source="measured",
        low=9.5,
        high=15.5,
        samples=3,
        reference="energy of rapl:package-0 over time",
    )
    assert watts.warnings == []


def test_domains_add_up_and_say_where_they_come_from() -> None:
    dram = domain(2.0, "rapl:dram", origin="simulated")
    watts = probe(Meter(window(domain(20.0, origin="simulated"), dram, foreign=0.9)))
    calls = []
    watts.processor(2, lambda: calls.append(1))
    leaf = watts.figures["loaded_power_2t_w"]
    assert (leaf.value, leaf.samples) == (11.0, 1)  # what others do is not in a simulated tree
    assert (
        leaf.reference == "energy of rapl:package-0 (simulated) + rapl:dram (simulated) over time"
    )
    assert len(calls) >= 2


def test_a_window_that_others_disturbed_is_taken_again() -> None:
    busy, calm = window(domain(90.0), foreign=0.3), window(domain(20.0))
    meter = Meter(busy, calm)
    watts = probe(meter)
    watts.idle()
    assert (watts.figures["idle_power_w"].value, meter.closed) == (10.0, 4)
    lasting = probe(Meter(busy))
    lasting.idle()
    assert lasting.figures["idle_power_w"].value is None
    assert lasting.warnings == [
        "idle_power_w is not known: other work used 30% of the processor meanwhile"
    ]


@pytest.mark.parametrize(("meter", "why"), [
    (Meter(window(), sources=(GUEST,)), "rapl says vm_guest"),
    (Meter(window(), sources=()), "nothing here measures it"),
    (Meter(window(domain(None, reason="counter_reset"))), "rapl:package-0 says counter_reset"),
])  # fmt: skip
def test_what_cannot_be_measured_is_unknown_with_its_reason(meter: Meter, why: str) -> None:
    watts = probe(meter)
    watts.idle()
    assert watts.figures["idle_power_w"] == Leaf(value=None, unit="W", source="measured")
    assert watts.warnings[0].startswith(f"idle_power_w is not known: {why}")


def test_without_a_meter_nothing_is_said() -> None:
    watts = probe(None)
    watts.idle(2)
    watts.processor(1, lambda: None)
    watts.devices(2, lambda: None)
    assert (watts.figures, watts.boards, watts.warnings) == ({}, {}, [])


def test_boards_have_watts_of_their_own() -> None:
    board = EnergySource(
        name="nvml:gpu0", domains=("nvml:gpu0",), label="measured_counter", update_period_s=0.1
    )
    both = window(domain(20.0), domain(120.0, "nvml:gpu0"), foreign=0.3)
    watts = probe(Meter(both, sources=(RAPL, board)))
    watts.idle(2)
    watts.devices(1, lambda: None)
    assert watts.figures["idle_power_w"].value is None  # others used the processor
    assert watts.boards[0]["idle_power_w"].value == 60.0  # which is not in a board's joules
    assert watts.boards[0]["loaded_power_w"].value == 60.0
    assert watts.boards[1]["idle_power_w"].value is None
    assert "idle_power_w of GPU 1 is not known" in watts.warnings[1]


def test_a_slow_counter_gets_long_and_few_windows() -> None:
    slow = EnergySource(name="hwmon", domains=("hwmon:power1",), label="measured_sampled")
    meter = Meter(window(domain(20.0, "hwmon:power1")), sources=(slow,))
    clock = Clock()
    watts = power_draw.PowerProbe(meter, clock=clock, sleep=clock.sleep)
    watts.idle()
    assert (clock.slept, meter.closed) == (3.5, 1)


def test_a_spent_budget_takes_no_window() -> None:
    meter = Meter(window(domain(20.0)))
    watts = probe(meter, over=lambda: True)
    watts.idle()
    assert meter.closed == 0
    assert watts.warnings == ["idle_power_w is not known: the time for probing was spent"]
