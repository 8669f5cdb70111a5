"""Energy computed from CPU time, for machines where nothing can be read.  Never "measured".

    P = P_idle + (P_max - P_idle) * u^g          u: share of the cores' time that was used

(Fan, Weber, Barroso, "Power provisioning for a warehouse-sized computer", ISCA 2007; g = 1.)
With the user's idle and maximum watts of the whole machine the range is +-40 % and the
label ``modelled_calibrated``; without them a prior per core stands in, the range is a
factor of two either way and the label ``modelled_tdp``.

The prior: 8 W for a busy core and 0.17 of that for an idle one.  Server parts with many
cores lie near 4 W a core (280 W / 64), desktop parts near 16 W (125 W / 8): the geometric
middle, and the factor of two reaches both ends.  No processor's name is looked up: a
fuzzy match would be a wrong number with a good excuse.

What this does not know: the GPU, the memory, the disks, the fans and the other tenants.
"""

from autotune.meters import Reading, Tools
from autotune.records.hardware import Profile
from autotune.records.measurement import Domain, EnergyLabel, EnergySource, Interval

PRIOR_CORE_MAX_W = 8.0
PRIOR_CORE_IDLE_W = 0.17 * PRIOR_CORE_MAX_W
EXPONENT = 1.0
_FACTOR = 2.0
_CALIBRATED = 0.4


class Modelled:
    """A meter without counters: it tells that a model exists, and reads nothing."""

    def __init__(self) -> None:
        self.periods_s: dict[str, float] = {}

    def sources(self) -> tuple[EnergySource, ...]:
        """The model, labelled as one."""
        return (
            EnergySource(
                name="modelled",
                label="modelled_tdp",
                reason="computed from CPU time by a power model, not measured",
                remedy="pass --accept-modelled-energy to let it decide; idle and maximum watts "
                "of this machine narrow its range",
            ),
        )

    def read(self) -> Reading:
        """No counters."""
        return Reading(0.0, {})

    def difference(self, *readings: Reading) -> tuple[Domain, ...]:
        """No domains: a model is no measurement."""
        return ()

    def guard_s(self) -> float | None:
        """Nothing wraps."""
        return None


def open(tools: Tools) -> Modelled:
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
    cores = profile.cpu.usable_cores
    calibrated = idle_w is not None and max_w is not None
    if idle_w is not None and max_w is not None:
        if not 0 <= idle_w <= max_w:
            raise ValueError(f"idle_w={idle_w} and max_w={max_w}: need 0 <= idle_w <= max_w")
        share = min(1.0, cores / profile.cpu.logical_cores)
        low_w, high_w = share * idle_w, share * max_w
    else:
        low_w, high_w = cores * PRIOR_CORE_IDLE_W, cores * PRIOR_CORE_MAX_W
    used = min(1.0, cpu_s / (window_s * cores)) if window_s else 0.0
    joules = (low_w + (high_w - low_w) * used**EXPONENT) * window_s
    if calibrated:
        low, high = joules * (1 - _CALIBRATED), joules * (1 + _CALIBRATED)
        return Interval(value=joules, low=low, high=high), "modelled_calibrated"
    return Interval(value=joules, low=joules / _FACTOR, high=joules * _FACTOR), "modelled_tdp"
