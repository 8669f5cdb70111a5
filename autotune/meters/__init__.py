"""Energy meters: what a counter said, twice, and what may be concluded from it.

    open(tools) -> Meter        sources()   what can be read here, and if not why and what helps
                                read()      raw cumulative counters, or a fault for each
                                difference(first, ..., last)   pure: joules between two readings

A meter never guesses: a domain whose two readings do not prove an energy gets
``energy_j=None`` and a reason, never 0 J.  A reason is one of `REASONS`, or such a word
followed by ``": "`` and a detail (`code` takes the word).

Readings between the first and the last (the meter process's slow guard reads) keep the
gaps short enough that at most one wrap can hide in each.

What this does not know: the share of one process in a package's or a board's energy.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any, Literal, NamedTuple, Protocol

from autotune.records.measurement import Domain, EnergyLabel, EnergySource, EnergyWindow

Origin = Literal["local", "host", "simulated"]

REASONS = (
    "no_interface",
    "permission",
    "vm_guest",
    "mig",
    "counter_reset",
    "wrap_ambiguous",
    "window_too_short",
    "stale_counter",
    "implausible",
)
UNKNOWN_PERIOD_S = 0.3
"""Update period assumed for a counter that never moved while it was watched."""
_RESOLVED = 3.0
"""An energy below this many half-widths is below resolution."""
_LABELS: tuple[EnergyLabel, ...] = (
    "measured_counter",
    "measured_sampled",
    "modelled_calibrated",
    "modelled_tdp",
    "unavailable",
)


class Fault(NamedTuple):
    """Why a counter could not be read."""

    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class Reading(NamedTuple):
    """Raw counters (in the meter's own unit) or faults by domain, at ``at_s`` on its clock."""

    at_s: float
    counters: Mapping[str, int | Fault]


class Tools(NamedTuple):
    """Everything a meter takes from outside, so that tests can put their own in its place.

    ``devices`` are the UUIDs of the GPUs that the plan uses, in torch's order; None means
    none were named.  ``nvml`` is a module with pynvml's names, imported only when None.
    """

    powercap: Path = Path("/sys/class/powercap")
    origin: Origin = "local"
    proc: Path = Path("/proc")
    clock: Callable[[], float] = monotonic
    devices: tuple[str, ...] | None = None
    nvml: Any = None


class Meter(Protocol):
    """One kind of counter.  ``periods_s`` (domain to update period) is filled by `calibrate`."""

    periods_s: dict[str, float]

    def sources(self) -> tuple[EnergySource, ...]:
        """What can be read; an unavailable source carries a reason and a remedy."""
        ...

    def read(self) -> Reading:
        """Every counter once.  Never raises for a counter that cannot be read."""
        ...

    def difference(self, *readings: Reading) -> tuple[Domain, ...]:
        """Energy between the first and the last of two or more readings in order.  Pure."""
        ...

    def guard_s(self) -> float | None:
        """Longest gap between readings that keeps a wrap unambiguous; None for no limit."""
        ...


def code(reason: str | None) -> str | None:
    """The word of `REASONS` that a reason starts with."""
    return None if reason is None else reason.partition(":")[0]


def unavailable(name: str, reason: Fault | str, origin: Origin = "local") -> Domain:
    """A domain that was not measured."""
    return Domain(name=name, energy_j=None, label="unavailable", origin=origin, reason=str(reason))


def conclude(
    name: str,
    energy_j: float,
    duration_s: float,
    *,
    period_s: float | None,
    quantum_j: float,
    max_w: float,
    origin: Origin = "local",
) -> Domain:
    """A domain from the energy that its counter advanced by.

    Each edge of the window may lie one update period away from the counter's own, so the
    half-width is ``2 * period * mean power`` (plus one quantum).  An energy under three
    half-widths is below resolution: ``window_too_short``, or ``stale_counter`` where a
    window that is long enough saw no advance at all.
    """
    period = UNKNOWN_PERIOD_S if period_s is None else period_s
    if duration_s <= 0:
        return unavailable(name, Fault("window_too_short", "no time passed"), origin)
    if energy_j > max_w * (duration_s + 2 * period):
        detail = f"{energy_j / duration_s:.0f} W where at most {max_w:.0f} W are possible"
        return unavailable(name, Fault("implausible", detail), origin)
    uncertainty_j = 2 * period * energy_j / duration_s + quantum_j
    if energy_j < _RESOLVED * uncertainty_j:
        if energy_j == 0 and duration_s >= 2 * _RESOLVED * period:
            return unavailable(name, "stale_counter", origin)
        detail = f"{duration_s:.4g} s against an update period of {period:.4g} s"
        return unavailable(name, Fault("window_too_short", detail), origin)
    return Domain(
        name=name,
        energy_j=energy_j,
        label="measured_counter",
        origin=origin,
        uncertainty_j=uncertainty_j,
    )


def window(
    duration_s: float,
    domains: Sequence[Domain],
    foreign_load: float | None = None,
    *,
    nothing: str | None = None,
) -> EnergyWindow:
    """Add the domains up.  The total exists only if every one of them was read.

    ``nothing`` is the reason given where there is no domain at all.
    """
    missing = [d for d in domains if d.energy_j is None]
    label = worst(d.label for d in domains) if domains else "unavailable"
    energies = [d.energy_j for d in domains if d.energy_j is not None]
    whole = bool(domains) and not missing
    return EnergyWindow(
        duration_s=duration_s,
        domains=tuple(domains),
        total_j=sum(energies) if whole else None,
        label=label if whole else "unavailable",
        uncertainty_j=sum(d.uncertainty_j or 0.0 for d in domains) if whole else None,
        reason=None if whole else _why(missing, nothing),
        foreign_load=foreign_load,
    )


def worst(labels: Iterable[EnergyLabel]) -> EnergyLabel:
    """The least trustworthy of some labels."""
    return max(labels, key=_LABELS.index)


def calibrate(
    meter: Meter,
    clock: Callable[[], float],
    *,
    limit_s: float = 0.25,
    changes: int = 20,
    polls: int = 100_000,
) -> None:
    """Watch the counters for at most ``limit_s`` and note how often each of them moves.

    A counter that moves fewer than twice gets no period: `conclude` then assumes
    `UNKNOWN_PERIOD_S`.
    """
    last: dict[str, int] = {}
    moved: dict[str, list[float]] = {}
    started = clock()
    for _ in range(polls):
        reading = meter.read()
        for name, value in reading.counters.items():
            if isinstance(value, int):
                if value != last.get(name, value):
                    moved.setdefault(name, []).append(reading.at_s)
                last[name] = value
        enough = bool(last) and all(len(moved.get(n, ())) > changes for n in last)
        if enough or not last or clock() - started >= limit_s:
            break
    for name, times in moved.items():
        gaps = sorted(b - a for a, b in pairwise(times))
        if gaps:
            meter.periods_s[name] = gaps[len(gaps) // 2]


def _why(missing: Sequence[Domain], nothing: str | None) -> str:
    reason = missing[0].reason if missing else nothing
    return reason or "no_interface"
