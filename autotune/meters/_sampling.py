"""Energy from sampled power, for sensors without a counter: the trapezoid integral.

    sensor --watts--> Sampler (a thread of its own) --adds to--> Trace: joules so far
    read() takes one more sample, so that the integral ends at the time of the reading

The thread pauses after 15 s without a reading.  A gap between two samples (the thread stalled
or died, the sensor failed) is a break: a window that contains one has no energy, since the
power in the gap is unknown.  The differences between samples bound the integral's error.

What this does not know: any averaging inside the sensor over more than the update period
that its plug-in states.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from autotune.meters import Fault, MeterTools, Origin, Power, Reading, conclude, unavailable
from autotune.records.measurement import Domain, EnergySource

_ASLEEP_S = 15.0
"""After this time without a reading no window is open: an open one is read every `GUARD_S`."""
GUARD_S = 5.0
_HOLE_S = 0.5
_HOLE_PERIODS = 5
_PATIENCE_S = 1.0


class Sensor(NamedTuple):
    """One power sensor.  ``watts()`` is its power now or a fault; above ``max_w`` is a fault too.

    ``period_s`` is the greatest age of a value; ``counted``: the sensor is part of the total.
    """

    domain: str
    watts: Callable[[], float | Fault]
    max_w: float
    period_s: float
    counted: bool = True


class Trace:
    """The integral of one sensor's samples."""

    def __init__(self, sensor: Sensor, hole_s: float) -> None:
        self._sensor = sensor
        self._hole_s = hole_s
        self._last: tuple[float, float] | None = None
        self._fault: Fault | None = None
        self._power = Power(0.0, 0.0, 0)

    def add(self, at_s: float) -> None:
        """Add the sensor's present power as the sample of time ``at_s``."""
        value = self._checked()
        if isinstance(value, Fault):
            self._fault = value
            self.tear(value)
            return
        self._fault = None
        if self._last is not None:
            self._step(at_s - self._last[0], self._last[1], value)
        self._power = self._power._replace(samples=self._power.samples + 1)
        self._last = at_s, value

    def tear(self, why: Fault) -> None:
        """Record a break: a window that contains it has no energy."""
        self._last = None
        self._power = self._power._replace(breaks=self._power.breaks + 1, why=why)

    def state(self) -> Power | Fault:
        """The integral so far, or why the last sample failed."""
        return self._power if self._fault is None else self._fault

    def _step(self, gap_s: float, before_w: float, after_w: float) -> None:
        if gap_s > self._hole_s:
            self.tear(Fault("stale_counter", f"the power sampler took no sample for {gap_s:.1f} s"))
            return
        joules = self._power.joules + (before_w + after_w) / 2 * gap_s
        rough = self._power.rough_j + abs(after_w - before_w) / 2 * gap_s
        self._power = self._power._replace(joules=joules, rough_j=rough)

    def _checked(self) -> float | Fault:
        value = self._sensor.watts()
        if isinstance(value, Fault) or 0 <= value <= self._sensor.max_w:
            return value
        return Fault("implausible", f"{value:.0f} W is outside 0 to {self._sensor.max_w:.0f} W")


class Sampler:
    """Takes samples of all sensors each ``period_s`` in the background, and at each reading."""

    def __init__(
        self,
        sensors: Sequence[Sensor],
        clock: Callable[[], float],
        *,
        period_s: float,
        background: bool = True,
    ) -> None:
        hole_s = max(_HOLE_S, _HOLE_PERIODS * period_s)
        self._traces = {sensor.domain: Trace(sensor, hole_s) for sensor in sensors}
        self._clock = clock
        self._period_s = period_s
        self._background = background and bool(sensors)
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._read_s = clock() if sensors else 0.0

    def read(self) -> Mapping[str, Power | Fault]:
        """One more sample, then the integrals up to now.  Wakes the thread."""
        if not self._traces:
            return {}
        if not self._lock.acquire(timeout=_PATIENCE_S):
            hangs = Fault("stale_counter", f"a power sensor did not return in {_PATIENCE_S:g} s")
            return dict.fromkeys(self._traces, hangs)
        try:
            self._read_s = self._clock()
            self._take()
            states = {name: trace.state() for name, trace in self._traces.items()}
        finally:
            self._lock.release()
        if self._background:
            self._wake()
        return states

    def sample(self) -> None:
        """One sample of each sensor; the thread calls it each period."""
        with self._lock:
            self._take()

    def _take(self) -> None:
        for trace in self._traces.values():
            trace.add(self._clock())

    def _wake(self) -> None:
        self._wanted.set()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="power sampler", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            self._wanted.wait()
            pause.wait(self._period_s)
            if self._clock() - self._read_s <= _ASLEEP_S:
                self.sample()
                continue
            self._wanted.clear()
            with self._lock:
                for trace in self._traces.values():
                    trace.tear(Fault("stale_counter", "power sampling paused: no readings"))


class Sampled:
    """A meter of power sensors only: one source of those in the total, one of the other rails."""

    def __init__(
        self,
        name: str,
        sensors: Sequence[Sensor],
        tools: MeterTools,
        *,
        period_s: float,
        missing: tuple[Fault, str],
        note: str | None = None,
        remedies: Mapping[str, str] = {},
    ) -> None:
        self.periods_s = {sensor.domain: sensor.period_s for sensor in sensors}
        self.sampler = Sampler(sensors, tools.clock, period_s=period_s, background=tools.background)
        self._name = name
        self._sensors = tuple(sensors)
        self._clock = tools.clock
        self._missing = missing
        self._note = note
        self._remedies = remedies

    def sources(self) -> tuple[EnergySource, ...]:
        """What can be read; an unavailable source says why and what helps."""
        counted = [sensor for sensor in self._sensors if sensor.counted]
        rails = [sensor for sensor in self._sensors if not sensor.counted]
        found = [self._source(self._name, counted)] if counted or not rails else []
        return (*found, *([self._source(f"{self._name}:rails", rails)] if rails else ()))

    def read(self) -> Reading:
        """The integrals of power so far."""
        return Reading(self._clock(), {}, self.sampler.read())

    def difference(self, *readings: Reading) -> tuple[Domain, ...]:
        """Joules by sensor; none where there is no sensor."""
        return tuple(domain(sensor, readings) for sensor in self._sensors)

    def max_gap_s(self) -> float | None:
        """Seconds between readings that keep the sampler's thread running; None without sensors."""
        return GUARD_S if self._sensors else None

    def _source(self, name: str, sensors: Sequence[Sensor]) -> EnergySource:
        rails = bool(sensors) and not sensors[0].counted
        fault, remedy = self._missing if not sensors else (None, None)
        for sensor in sensors:
            value = sensor.watts()
            if isinstance(value, Fault) and fault is None:
                fault = value
                remedy = self._remedies.get(value.reason) or f"check the sensor {sensor.domain}"
        return EnergySource(
            name=name,
            domains=tuple(sensor.domain for sensor in sensors),
            label="measured_sampled" if fault is None else "unavailable",
            reason=None if fault is None else str(fault),
            remedy=remedy,
            update_period_s=max((s.period_s for s in sensors), default=None),
            scope="rails" if rails else "machine",
            note=self._note,
        )


def domain(sensor: Sensor, readings: Sequence[Reading], origin: Origin = "local") -> Domain:
    """Joules between the first and the last reading of one sensor.  Pure."""
    states: list[Power] = []
    for reading in readings:
        state = reading.power.get(sensor.domain, Fault("no_interface", "never read"))
        if isinstance(state, Fault):
            return unavailable(sensor.domain, state, origin)
        states.append(state)
    first, last = states[0], states[-1]
    if last.breaks != first.breaks:
        return unavailable(sensor.domain, last.why, origin)
    return conclude(
        sensor.domain,
        last.joules - first.joules,
        readings[-1].at_s - readings[0].at_s,
        period_s=sensor.period_s,
        quantum_j=0.0,
        max_w=sensor.max_w,
        origin=origin,
        label="measured_sampled",
        rough_j=last.rough_j - first.rough_j,
    )
