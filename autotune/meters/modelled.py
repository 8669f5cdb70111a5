"""Energy computed from CPU time, for machines where nothing can be read.  Never labelled measured.

    P = P_idle + (P_max - P_idle) * u^g          u: share of the cores' time that was used

(Fan, Weber, Barroso, "Power provisioning for a warehouse-sized computer", ISCA 2007.)
With the user's idle and maximum watts of the whole machine g and its range come from nine
published servers (`SPECPOWER`): at half load their power lay 17 % above to 33 % below the
straight line's dynamic part.  The range is where nine tenths of such machines lie with 90 %
confidence, at least +-5 % (a wattage is never better known) and at most +-25 % (all nine lie
within).  ``python -m benchmarks.energy_model`` leaves out one in turn.  A process that may
use only some of the cores is assigned its share of idle power, which no published
data confirms: then the range is +-40 %.  Label: ``modelled_calibrated``.

They may also come from a profile that was measured where counters could be read (`measured_w`).
Without both wattages a prior per core is used, g = 1, the range is a factor of two either
way and the label ``modelled_tdp``.  The prior: 8 W for a busy core and 0.17 of that for an
idle one.  Server parts with many cores lie near 4 W a core (280 W / 64), desktop parts near
16 W (125 W / 8): 8 W is the geometric mean, and the factor of two covers both.  No
processor's name is looked up: an approximate match could be silently wrong.

What this does not know: the GPU, the memory, the disks, the fans and the other tenants.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from statistics import fmean, stdev
from typing import Literal, NamedTuple

from autotune.meters import MeterTools, Reading
from autotune.records.hardware import Profile
from autotune.records.measurement import Domain, EnergyLabel, EnergySource, Interval

NOUN = "modelled"


PRIOR_CORE_MAX_W = 8.0
PRIOR_CORE_IDLE_W = 0.17 * PRIOR_CORE_MAX_W
_FACTOR = 2.0
_LEAST, _MOST, _SHARED = 0.05, 0.25, 0.4

SPECPOWER: dict[str, tuple[float, float, float]] = {
    "RX300 S4": (166, 224, 265),
    "x3650 M2": (81.4, 167, 244),
    "x3550 M3": (58.4, 140, 222),
    "RX300 S7": (53.1, 117, 245),
    "R380 F2": (71.5, 174, 316),
    "R830": (86.4, 315, 562),
    "R740": (52.3, 224, 457),
    "R640": (55, 232, 469),
    "R940": (106, 437, 915),
}
"""Whole-server watts at idle, 50 % and 100 % load (spec.org/power_ssj2008)."""
_TOLERANCE = {8: 2.74, 9: 2.63}
"""Two-sided tolerance factors, normal distribution: 90 % of cases with 90 % confidence."""

_IDLE_SHARES = (0.09, 0.25)
_MAX_SHARES = (0.57, 1.4)
_EXPONENTS = tuple(round(0.6 + 0.05 * step, 2) for step in range(13))
Answer = Literal["rank robust", "rank depends on the assumed power model"]


class Shape(NamedTuple):
    """Exponents of the power curve: the usual one, and those of the range's two ends.

    A larger exponent means less power, so ``low`` is the larger one.
    """

    low: float
    usual: float
    high: float


class Use(NamedTuple):
    """CPU seconds that one plan used in a window of time, and the samples it processed."""

    cpu_s: float
    window_s: float
    samples: int


class Modelled:
    """A meter without counters: lists the power model as a source, and reads nothing."""

    def __init__(self) -> None:
        self.periods_s: dict[str, float] = {}

    def sources(self) -> tuple[EnergySource, ...]:
        """The power model, labelled ``modelled_tdp``."""
        return (
            EnergySource(
                name="modelled",
                label="modelled_tdp",
                reason="computed from CPU time by a power model, not measured",
                remedy="pass --accept-modelled-energy to let it decide; --cpu-idle-w and "
                "--cpu-max-w (this machine's watts, idle and busy) narrow its range",
            ),
        )

    def read(self) -> Reading:
        """No counters."""
        return Reading(0.0, {})

    def difference(self, *readings: Reading) -> tuple[Domain, ...]:
        """No domains: nothing is measured."""
        return ()

    def max_gap_s(self) -> float | None:
        """None: there is no counter."""
        return None


def open(tools: MeterTools) -> Modelled:
    """The meter that reads nothing."""
    return Modelled()


def energy(
    profile: Profile,
    cpu_s: float,
    window_s: float,
    *,
    idle_w: float | None = None,
    max_w: float | None = None,
) -> tuple[Interval, EnergyLabel]:
    """Modelled joules of a window in which a process used ``cpu_s`` seconds of CPU time.

    Idle power is attributed to the process for the cores that it may use: with the
    machine's ``idle_w`` and ``max_w`` (both, in watts) its share of all logical cores.

    Raises:
        ValueError: a time or a wattage that is negative, or ``max_w`` under ``idle_w``.
    """
    if cpu_s < 0 or window_s < 0:
        raise ValueError(f"cpu_s={cpu_s} and window_s={window_s} must not be negative")
    cores = profile.cpu.cores
    used = min(1.0, cpu_s / (window_s * cores)) if window_s else 0.0
    if idle_w is not None and max_w is not None:
        if not 0 <= idle_w <= max_w:
            raise ValueError(f"idle_w={idle_w} and max_w={max_w}: need 0 <= idle_w <= max_w")
        watts = calibrated(idle_w, max_w, used)
        share = min(1.0, cores / (profile.cpu.logical_cores or cores))
        if share < 1:
            watts = _spread(watts.value * share, 1 - _SHARED, 1 + _SHARED)
        return _times(watts, window_s), "modelled_calibrated"
    low_w, high_w = cores * PRIOR_CORE_IDLE_W, cores * PRIOR_CORE_MAX_W
    return _times(
        _spread(low_w + (high_w - low_w) * used, 1 / _FACTOR, _FACTOR), window_s
    ), "modelled_tdp"


def measured_w(profile: Profile) -> tuple[float, float] | None:
    """Watts idle and on all cores that the profile measured, where it had the whole machine."""
    cores = profile.cpu.logical_cores
    if cores is None or profile.cpu.usable_cores != cores:
        return None
    leaves = (profile.figures.get(name) for name in ("idle_power_w", f"loaded_power_{cores}t_w"))
    found = [leaf.value for leaf in leaves if leaf is not None and leaf.value is not None]
    return (found[0], found[1]) if len(found) == 2 and found[0] <= found[1] else None


def calibrated(idle_w: float, max_w: float, used: float, shape: Shape | None = None) -> Interval:
    """Watts of a whole machine at a load of ``used`` (0 to 1), with the 90 % range."""
    curve = shape or SHAPE
    low, value, high = (idle_w + (max_w - idle_w) * used**g for g in curve)
    return Interval(
        value=value,
        low=max(value * (1 - _MOST), min(low, value * (1 - _LEAST))),
        high=min(value * (1 + _MOST), max(high, value * (1 + _LEAST))),
    )


def fit(systems: Sequence[tuple[float, float, float]]) -> Shape:
    """The curve of some servers' (idle, half, full) watts: mean and tolerance of the share of
    dynamic power at half load, as exponents.

    Raises:
        KeyError: not eight or nine systems.
    """
    halves = [(half - idle) / (full - idle) for idle, half, full in systems]
    middle, reach = fmean(halves), _TOLERANCE[len(halves)] * stdev(halves)
    return Shape(*(-math.log2(half) for half in (middle - reach, middle, middle + reach)))


SHAPE = fit(tuple(SPECPOWER.values()))


def rank_robustness(uses: Sequence[Use], cores: float) -> Answer:
    """Whether the plans' order by energy per sample holds whatever the machine's power is.

    The order is computed anew over idle/TDP 0.09 to 0.25, max/TDP 0.57 to 1.4 and
    g 0.6 to 1.2 (TDP itself scales all plans alike).  Energy is linear in the first two,
    so their ends suffice.

    Raises:
        ValueError: a plan without time or samples.
    """
    for use in uses:
        if use.window_s <= 0 or use.samples < 1 or use.cpu_s < 0:
            raise ValueError(f"{use}: needs window_s > 0, samples >= 1 and cpu_s >= 0")
    orders = {
        tuple(sorted(range(len(uses)), key=energies.__getitem__))
        for energies in _energies(uses, cores)
    }
    return "rank robust" if len(orders) <= 1 else "rank depends on the assumed power model"


def _energies(uses: Sequence[Use], cores: float) -> Iterator[list[float]]:
    """Energy per sample of each plan, for every power model, in units of TDP."""
    for idle, full, g in product(_IDLE_SHARES, _MAX_SHARES, _EXPONENTS):
        yield [
            (idle + (full - idle) * min(1.0, use.cpu_s / (use.window_s * cores)) ** g)
            * use.window_s
            / use.samples
            for use in uses
        ]


def _spread(value: float, low: float, high: float) -> Interval:
    return Interval(value=value, low=value * low, high=value * high)


def _times(watts: Interval, window_s: float) -> Interval:
    return Interval(
        value=watts.value * window_s, low=watts.low * window_s, high=watts.high * window_s
    )
