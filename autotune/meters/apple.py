"""Apple silicon by ``zeus-apple-silicon`` (optional): processor, GPU, neural engine, memory.

The library measures windows and has no counter: each reading ends one window and begins the next,
and their sum is used as the counter.

What this does not know: the rest of the machine, and which process used the energy.
"""

import sys
from importlib import import_module
from itertools import pairwise
from typing import Any

from autotune.meters import Fault, MeterTools, Reading, conclude, unavailable
from autotune.records.measurement import Domain, EnergySource

NOUN = "Apple chip"
OPTIONAL = True
_PARTS = {
    "apple:cpu": "cpu_total_mj",
    "apple:gpu": "gpu_mj",
    "apple:ane": "ane_mj",
    "apple:dram": "dram_mj",
}
_WINDOW = "autotune"
_MAX_W = 500.0
_QUANTUM_J = 1e-3
_PERIOD_S = 0.01


class Apple:
    """The parts of this chip that have a counter."""

    def __init__(self, tools: MeterTools) -> None:
        self._clock = tools.clock
        self._totals_mj: dict[str, int | Fault] = {}
        self._monitor, self._fault = _start(tools)
        self.read()  # finds the parts that this chip reports
        self.periods_s = dict.fromkeys(self._totals_mj, _PERIOD_S)

    def sources(self) -> tuple[EnergySource, ...]:
        """One source for the chip."""
        domains = tuple(self._totals_mj)
        fault = self._fault
        if fault is None and not domains:
            fault = Fault("no_interface", "this chip reports no energy for any of its parts")
        return (
            EnergySource(
                name="apple",
                domains=domains,
                label="measured_counter" if fault is None else "unavailable",
                reason=None if fault is None else str(fault),
                remedy=None
                if fault is None
                else "on a Mac with Apple silicon: pip install zeus-apple-silicon",
                update_period_s=_PERIOD_S if domains else None,
            ),
        )

    def read(self) -> Reading:
        """Millijoules so far by domain."""
        if self._monitor is not None and self._fault is None:
            try:
                self._add(self._monitor.end_window(_WINDOW))
                self._monitor.begin_window(_WINDOW)
            except Exception as error:  # of any type: the library names none
                self._fault = Fault("no_interface", str(error))
        if self._fault is not None:
            return Reading(self._clock(), dict.fromkeys(self._totals_mj, self._fault))
        return Reading(self._clock(), dict(self._totals_mj))

    def difference(self, *readings: Reading) -> tuple[Domain, ...]:
        """Joules by part."""
        names = dict.fromkeys(name for reading in readings for name in reading.counters)
        return tuple(_domain(name, readings) for name in names)

    def max_gap_s(self) -> float | None:
        """None: these sums do not wrap."""
        return None

    def _add(self, metrics: Any) -> None:
        for domain, field in _PARTS.items():
            value = getattr(metrics, field, None)
            if value is not None:
                before = self._totals_mj.get(domain, 0)
                self._totals_mj[domain] = (before if isinstance(before, int) else 0) + int(value)


def open(tools: MeterTools) -> Apple:
    """The meter of an Apple chip; never raises, unavailable elsewhere."""
    return Apple(tools)


def _start(tools: MeterTools) -> tuple[Any, Fault | None]:
    library = tools.apple
    if library is None:
        if sys.platform != "darwin":
            return None, Fault("no_interface", "not an Apple machine")
        try:
            library = import_module("zeus_apple_silicon")
        except ImportError:
            return None, Fault("no_interface", "zeus-apple-silicon is not installed")
    try:
        monitor = library.AppleEnergyMonitor()
        monitor.begin_window(_WINDOW)
    except Exception as error:  # of any type: the library names none
        return None, Fault("no_interface", str(error))
    return monitor, None


def _domain(name: str, readings: tuple[Reading, ...]) -> Domain:
    values: list[int] = []
    for reading in readings:
        value = reading.counters.get(name, Fault("no_interface", "never read"))
        if isinstance(value, Fault):
            return unavailable(name, value)
        values.append(value)
    if any(later < earlier for earlier, later in pairwise(values)):
        return unavailable(name, "counter_reset")
    return conclude(
        name,
        (values[-1] - values[0]) * 1e-3,
        readings[-1].at_s - readings[0].at_s,
        period_s=_PERIOD_S,
        quantum_j=_QUANTUM_J,
        max_w=_MAX_W,
    )
