"""Energy meters: the joules between two readings of a counter, or why they are not known.

    open(tools) -> Meter        sources()   what can be read here; if not, why and what helps
                                read()      raw cumulative counters, or a fault for each;
                                            where there is only power, its integral so far
                                difference(first, ..., last)   pure: joules between two readings

A meter does not estimate: a domain whose readings do not determine an energy gets
``energy_j=None`` and a reason, never 0 J.  A reason is one of `REASONS`, or such a word
followed by ``": "`` and a detail (`code` returns the word).

Readings between the first and the last (the meter process's slow guard reads) keep the
gaps short enough that at most one wrap can occur in each.  All times are of one monotonic
clock: a jump of the wall clock changes nothing.

What it cannot measure: the share of one process in a package's or a board's energy.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any, Literal, NamedTuple, Protocol

from autotune import plugins
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
    "foreign_load",
)
UNKNOWN_PERIOD_S = 0.3
"""Update period assumed for a counter that never moved while it was watched."""
_RESOLVED = 3.0
"""An energy below this many half-widths is below resolution."""
QUICK_S = 0.005
"""A counter that updates at least this often is waited for at both ends of a window."""
FOREIGN_WARN, FOREIGN_INVALID = 0.05, 0.20
"""Shares of the CPU time used by other processes that add a note, and that void the energy."""
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


class Power(NamedTuple):
    """The integral of sampled power so far.

    ``rough_j`` bounds the trapezoids' error if power was monotonic between two samples;
    ``breaks`` counts the gaps in the samples, ``why`` explains the last one.
    """

    joules: float
    rough_j: float
    samples: int
    breaks: int = 0
    why: Fault = Fault("stale_counter")


class Reading(NamedTuple):
    """Raw counters (in the meter's own unit) or faults by domain, at ``at_s`` on its clock.

    ``power`` holds sampled power by domain.  ``edges`` are the times at which counters were
    seen to change (`edge`): those values are of that moment and not of ``at_s``.
    """

    at_s: float
    counters: Mapping[str, int | Fault]
    power: Mapping[str, Power | Fault] = {}
    edges: Mapping[str, float] = {}


class MeterTools(NamedTuple):
    """Everything that a meter accesses, so that tests can replace it.

    ``devices`` are the UUIDs of the GPUs that the plan uses, in torch's order; None means
    none were named, and ``("all",)`` every board there is.  ``nvml``, ``amdsmi`` and
    ``apple`` are modules with the names of pynvml, amdsmi and zeus_apple_silicon, imported
    only when None.  ``background`` is False where a test takes the samples of power itself.
    """

    powercap: Path = Path("/sys/class/powercap")
    sys: Path = Path("/sys")
    origin: Origin = "local"
    proc: Path = Path("/proc")
    clock: Callable[[], float] = monotonic
    devices: tuple[str, ...] | None = None
    nvml: Any = None
    amdsmi: Any = None
    apple: Any = None
    background: bool = True


class Meter(Protocol):
    """One kind of counter.  ``periods_s`` (domain to update period) is filled by `calibrate`.

    Its module has ``open(tools)``, which never raises, and ``NOUN``, what it measures in a word or
    two.  It may have

    - ``OPTIONAL = True``: its absence is not reported.
    - ``BOARDS``: it measures accelerators with these words in their names; empty: all others.
    - ``WHOLE``: it measures the whole machine; of several such meters the lowest number is used.
    - ``REMEDIES``: what helps, line by line, by reason.
    """

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

    def max_gap_s(self) -> float | None:
        """Longest gap between readings that keeps a wrap unambiguous; None for no limit."""
        ...


def declared(name: str, constant: str, default: Any = None) -> Any:
    """What the meter of a source or domain (``nvml:gpu0``) says in a constant of its module:
    see `Meter`.
    """
    kind = name.partition(":")[0]
    module = plugins.load("meters", kind) if kind in plugins.names("meters") else None
    return getattr(module, constant, default)


def of_board(name: str) -> bool:
    """Whether a meter, source or domain measures accelerator boards: their energy does not include
    what other processes use on the CPU.
    """
    return declared(name, "BOARDS") is not None


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
    label: EnergyLabel = "measured_counter",
    rough_j: float = 0.0,
    edge_s: float | None = None,
) -> Domain:
    """A domain from the energy that its counter advanced by.

    Each edge of the window may lie one update period away from the counter's own, so the
    half-width is ``2 * period * mean power`` plus one quantum (and ``rough_j``).  Where the
    counter's own edges were awaited, ``edge_s`` is the error of both ends together.  An
    energy under three half-widths is below resolution: ``window_too_short``, or
    ``stale_counter`` where a window that is long enough saw no advance at all.
    """
    period = UNKNOWN_PERIOD_S if period_s is None else period_s
    if duration_s <= 0:
        return unavailable(name, Fault("window_too_short", "no time passed"), origin)
    if energy_j > max_w * (duration_s + 2 * period):
        detail = f"{energy_j / duration_s:.0f} W where at most {max_w:.0f} W are possible"
        return unavailable(name, Fault("implausible", detail), origin)
    amiss_s = 2 * period if edge_s is None else edge_s
    uncertainty_j = amiss_s * energy_j / duration_s + quantum_j + rough_j
    if energy_j <= 0 or energy_j < _RESOLVED * uncertainty_j:
        if energy_j <= 0 and duration_s >= 2 * _RESOLVED * period:
            return unavailable(name, "stale_counter", origin)
        detail = (
            f"below resolution: {duration_s:.4g} s against an update period of {period:.4g} s, "
            f"at least {2 * _RESOLVED * period:.4g} s are needed"
        )
        return unavailable(name, Fault("window_too_short", detail), origin)
    return Domain(
        name=name, energy_j=energy_j, label=label, origin=origin, uncertainty_j=uncertainty_j
    )


def window(
    duration_s: float,
    domains: Sequence[Domain],
    foreign_load: float | None = None,
    *,
    nothing: str | None = None,
    meter_cpu_s: float | None = None,
) -> EnergyWindow:
    """Add the domains up.  The total is None if a domain was not read or, where the CPU is
    in it, if other processes used more than 20 % of the CPU time.

    ``nothing`` is the reason given where there is no domain at all.
    """
    missing = [d for d in domains if d.energy_j is None]
    label = worst(d.label for d in domains) if domains else "unavailable"
    reason = _why(missing, nothing) if missing or not domains else None
    notes = [f"{d.name}: {d.note}" for d in domains if d.note]
    others = foreign_load if foreign_load is not None and _shared(domains) else 0.0
    if others > FOREIGN_WARN:
        notes.append(f"other processes used {others:.0%} of the processor's time")
    if reason is None and others > FOREIGN_INVALID:
        detail = f"other processes used {others:.0%} of the processor's time, their energy is in it"
        reason = str(Fault("foreign_load", detail))
    whole = reason is None
    return EnergyWindow(
        duration_s=duration_s,
        domains=tuple(domains),
        total_j=sum(d.energy_j or 0.0 for d in domains) if whole else None,
        label=label if whole else "unavailable",
        uncertainty_j=sum(d.uncertainty_j or 0.0 for d in domains) if whole else None,
        reason=reason,
        foreign_load=foreign_load,
        notes=tuple(notes),
        meter_cpu_s=meter_cpu_s,
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
    """Watch the counters for at most ``limit_s`` and set ``periods_s`` from how often they move.

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


def edge(meter: Meter, *, closing: bool, polls: int = 1000) -> Reading:
    """Read each quick counter when it changes, slower ones at once.

    Waits for two update periods at most.  ``at_s`` is where the window really begins (the
    return of this function) or ends (its call); ``edges`` are the times at which counters moved.
    """
    first = last = meter.read()
    waiting = {
        name: value
        for name, value in first.counters.items()
        if isinstance(value, int) and meter.periods_s.get(name, QUICK_S * 2) <= QUICK_S
    }
    if not waiting:
        return first
    until_s = first.at_s + 2 * max(meter.periods_s[name] for name in waiting)
    moved: dict[str, int | Fault] = {}
    edges: dict[str, float] = {}
    for _ in range(polls):
        last = meter.read()
        for name in [n for n in waiting if last.counters.get(n) != waiting[n]]:
            moved[name], edges[name] = last.counters[name], last.at_s
            del waiting[name]
        if not waiting or last.at_s >= until_s:
            break
    at_s = first.at_s if closing else last.at_s
    return last._replace(at_s=at_s, counters={**last.counters, **moved}, edges=edges)


def span(name: str, first: Reading, last: Reading) -> tuple[float, float | None]:
    """Seconds between two readings of a counter, and their error against the window's.

    The second is None where the counter's own edges were not awaited: then it is unknown
    by one update period at each end.
    """
    asked_s = last.at_s - first.at_s
    if name not in first.edges or name not in last.edges:
        return asked_s, None
    seen_s = last.edges[name] - first.edges[name]
    return seen_s, abs(first.at_s - first.edges[name]) + abs(last.edges[name] - last.at_s)


def shortest_window(period_s: float, relative: float, *, aligned: bool = False) -> float:
    """Seconds that a window must last for a relative error of ``relative`` at worst.

    ``T >= 2 d / x`` with update period d (one d at each end); where the counter's own edges
    are awaited at the start, only the end is unknown: ``d / x``.

    Raises:
        ValueError: a period or an error that is not positive.
    """
    if period_s <= 0 or relative <= 0:
        raise ValueError(f"period_s={period_s} and relative={relative} must be positive")
    return (1 if aligned else 2) * period_s / relative


def _shared(domains: Sequence[Domain]) -> bool:
    """Whether other processes' use of the CPU is in these joules; it is not in those of
    simulated counters.
    """
    return any(d.origin != "simulated" and not of_board(d.name) for d in domains)


def _why(missing: Sequence[Domain], nothing: str | None) -> str:
    reason = missing[0].reason if missing else nothing
    return reason or "no_interface"
