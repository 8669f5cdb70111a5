"""Apple's counters through an injected library."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from autotune import meters
from autotune.meters import MeterTools, apple
from tests.support.energy_sim import Clock


class Monitor:
    """Windows of 10 J for the processor and 5 J for the GPU; no memory, no neural engine."""

    fails = False

    def begin_window(self, name: str) -> None:
        pass

    def end_window(self, name: str) -> Any:
        if self.fails:
            raise RuntimeError("IOReport")
        return SimpleNamespace(cpu_total_mj=10_000, gpu_mj=5000, dram_mj=None, ane_mj=None)


def opened(monitor: Monitor, clock: Clock) -> apple.Apple:
    library = SimpleNamespace(AppleEnergyMonitor=lambda: monitor)
    return apple.open(MeterTools(apple=library, clock=clock))


def test_windows_add_up() -> None:
    clock = Clock()
    meter = opened(Monitor(), clock)
    first = meter.read()
    clock.now = 1.0
    middle = meter.read()
    clock.now = 2.0
    domains = meter.difference(first, middle, meter.read())
    assert {d.name: d.energy_j for d in domains} == {
        "apple:cpu": pytest.approx(20.0),
        "apple:gpu": pytest.approx(10.0),
    }
    assert meter.sources()[0].label == "measured_counter"
    assert meter.max_gap_s() is None


def test_library_that_fails_later() -> None:
    monitor, clock = Monitor(), Clock()
    meter = opened(monitor, clock)
    first = meter.read()
    clock.now, monitor.fails = 1.0, True
    assert {d.energy_j for d in meter.difference(first, meter.read())} == {None}
    assert meter.sources()[0].label == "unavailable"


def test_library_that_fails_at_once() -> None:
    def broken() -> None:
        raise RuntimeError("no IOReport")

    meter = apple.open(MeterTools(apple=SimpleNamespace(AppleEnergyMonitor=broken)))
    assert meter.sources()[0].reason == "no_interface: no IOReport"


def test_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    (source,) = apple.open(MeterTools()).sources()
    assert source.reason == "no_interface: not an Apple machine"
    monkeypatch.setattr(sys, "platform", "darwin")

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(apple, "import_module", missing)
    (source,) = apple.open(MeterTools()).sources()
    assert "not installed" in (source.reason or "")
    assert "pip install" in (source.remedy or "")


def test_chip_that_tells_nothing_and_one_that_goes_backwards() -> None:
    class Silent(Monitor):
        def end_window(self, name: str) -> Any:
            return SimpleNamespace()

    silent = opened(Silent(), Clock())
    assert meters.code(silent.sources()[0].reason) == "no_interface"

    class Backwards(Monitor):
        sign = 1

        def end_window(self, name: str) -> Any:
            return SimpleNamespace(cpu_total_mj=self.sign * 10_000)

    monitor, clock = Backwards(), Clock()
    meter = opened(monitor, clock)
    first = meter.read()
    monitor.sign, clock.now = -1, 1.0
    (domain,) = meter.difference(first, meter.read())
    assert (domain.energy_j, domain.reason) == (None, "counter_reset")
