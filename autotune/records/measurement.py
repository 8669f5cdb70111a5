"""Measurements.  Missing is ``None``; a modelled number is kept apart from a measured one."""

from typing import Literal

from autotune.records.base import Record

EnergyLabel = Literal[
    "measured_counter",
    "measured_sampled",
    "modelled_calibrated",
    "modelled_tdp",
    "unavailable",
]
VerdictName = Literal["MET", "NOT_MET", "UNDECIDED", "NOT_MEASURED"]

LOOKS = (3, 6)
"""Launches of each side after which verification gives its verdicts."""


class Domain(Record, frozen=True, kw_only=True):
    """One energy domain over one window, e.g. ``rapl:package-0`` or ``nvml:gpu0``.

    ``origin`` is ``local``, ``host`` (a powercap tree that the host provided to a guest)
    or ``simulated``.  ``uncertainty_j`` is the half-width caused by the counter's
    resolution and update period.  ``reason`` says why ``energy_j`` is None, ``note``
    why it may be unreliable.
    """

    name: str
    energy_j: float | None
    label: EnergyLabel
    origin: Literal["local", "host", "simulated"] = "local"
    uncertainty_j: float | None = None
    reason: str | None = None
    note: str | None = None


class EnergyWindow(Record, frozen=True, kw_only=True):
    """The meter process's answer for one window.  ``total_j`` is None unless every counted
    domain was read; ``label`` is the worst label among them.

    ``dynamic_j`` is the total minus the idle energy at ``idle_w`` (the mean of before and after),
    where the window was opened with an idle baseline; it may be negative, and ``notes`` says
    so.  ``meter_cpu_s`` is the CPU time of measuring itself.
    """

    duration_s: float
    domains: tuple[Domain, ...]
    total_j: float | None
    label: EnergyLabel
    uncertainty_j: float | None = None
    reason: str | None = None
    foreign_load: float | None = None
    notes: tuple[str, ...] = ()
    idle_w: float | None = None
    dynamic_j: float | None = None
    dynamic_uncertainty_j: float | None = None
    meter_cpu_s: float | None = None


class EnergySource(Record, frozen=True, kw_only=True):
    """One source that was found (or not) before the run; listed in ``energy_sources``.

    ``scope``: ``parts`` of a machine (processors, boards) add up; ``machine`` is all of it
    and is counted only where no part can be read; ``rails`` are shown and never counted.
    """

    name: str
    domains: tuple[str, ...] = ()
    label: EnergyLabel
    origin: Literal["local", "host", "simulated"] = "local"
    reason: str | None = None
    remedy: str | None = None
    update_period_s: float | None = None
    scope: Literal["parts", "machine", "rails"] = "parts"
    note: str | None = None


class Interval(Record, frozen=True, kw_only=True):
    """A modelled or estimated value with its range."""

    value: float
    low: float
    high: float


class Launch(Record, frozen=True, kw_only=True):
    """One fresh interpreter that loaded one artifact and timed single calls.

    ``latency_s`` holds every timed call, none dropped.  ``window_s`` and ``cpu_s`` span the
    timed calls of the energy window, ``window_calls`` of them.  ``work_s`` is the whole time
    that the interpreter spent after its start-up.  ``device_memory_bytes`` is the peak of
    PyTorch's allocator on the GPU; CUDA's own context is not included.

    Under an open-loop load ``latency_s`` is the service time of each answered request,
    ``response_s`` the time since it was due, and ``timeouts`` counts those never answered.
    """

    latency_s: tuple[float, ...]
    load_s: float
    first_call_s: float
    warmup_calls: int
    settled: bool
    window_s: float
    window_calls: int
    cpu_s: float
    peak_memory_bytes: int
    device_memory_bytes: int | None = None
    energy: EnergyWindow | None = None
    tags: dict[str, int] = {}
    environment: dict[str, str | float | None] = {}
    work_s: float = 0.0
    response_s: tuple[float, ...] = ()
    timeouts: int = 0


class Scores(Record, frozen=True, kw_only=True):
    """Quality of one artifact on one part of the data.

    Either ``per_sample`` (the mean is ``quality``) or ``replicates``: the metric on
    bootstrap resamples whose row indices depend on the random seed alone, so that two
    artifacts' replicates are paired.  ``balanced_accuracy`` is the mean of the classes' recalls,
    where there are classes.
    """

    quality: float
    rows: int
    per_sample: tuple[float, ...] | None = None
    replicates: tuple[float, ...] | None = None
    loss: float | None = None
    worst_class_recall: float | None = None
    balanced_accuracy: float | None = None


class Verdict(Record, frozen=True, kw_only=True):
    """One budget against its samples.  Unit is SI (``s``, ``J``, ``B``, or the metric's).

    The limit is an upper one unless ``at_least``.
    """

    name: str
    unit: str
    limit: float
    estimate: float | None
    lower: float | None
    upper: float | None
    confidence: float
    samples: int
    verdict: VerdictName
    source: str
    note: str | None = None
    at_least: bool = False
