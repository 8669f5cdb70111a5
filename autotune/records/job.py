"""What crosses the bridge: one job out, one result back.

Paths inside jobs are relative to the run's work folder (the bridge resolves them), so
that a recorded run can be replayed anywhere.  A job that reports progress waits after
each report for the answer "go" or "stop".
"""

from typing import Generic, Literal, TypeVar

from autotune.records.base import Record
from autotune.records.hardware import Profile
from autotune.records.measurement import EnergySource, EnergyWindow, Launch, Scores
from autotune.records.plan import Recipe, Step, Value
from autotune.records.report import Failure
from autotune.records.task import Option, TaskInfo, TaskSpec, Traits

A = TypeVar("A", covariant=True)


class Context(Record, frozen=True, kw_only=True):
    """What a plug-in's ``unavailable`` may look at."""

    info: TaskInfo
    traits: Traits
    profile: Profile


class Job(Record, Generic[A], frozen=True, kw_only=True):
    """One piece of work for a worker, whose answer is an ``A``."""


class Inspection(Record, frozen=True, kw_only=True, tag=True):
    """Rows files (worker.data.rows) are ``data/validation``, ``data/test``, ``data/calibration``.

    ``imports`` are the packages that loading the task imported: the server imports them
    once so that later jobs do not pay for them.  ``weights`` is a safetensors file,
    written where the model came trained.  ``evaluation_s`` is what evaluating all of *validation*
    would take, from a first batch.
    """

    info: TaskInfo
    traits: Traits
    imports: tuple[str, ...] = ()
    weights: str | None = None
    evaluation_s: float | None = None


class Inspect(Job[Inspection], frozen=True, kw_only=True, tag=True):
    """Load the task, split its data, write the rows of *validation* and *test* (and
    calibration rows) under ``data/``, count the model's traits.
    """

    task: TaskSpec
    batch_size: int = 1
    pretrained: bool | None = None


class Outlined(Record, frozen=True, kw_only=True, tag=True):
    """``notes`` say what could not be seen without weights, and what was done instead."""

    info: TaskInfo
    traits: Traits
    notes: tuple[str, ...] = ()


class Outline(Job[Outlined], frozen=True, kw_only=True, tag=True):
    """Count the model's traits without its weights: made on the meta device where that works,
    so that a model far larger than this machine's memory can be looked at.  Nothing is written.
    """

    task: TaskSpec


class Probed(Record, frozen=True, kw_only=True, tag=True):
    """``lacking`` says by maker why none of its accelerators is in the profile."""

    profile: Profile
    lacking: dict[str, str] = {}


class Probe(Job[Probed], frozen=True, kw_only=True, tag=True):
    """Profile this machine.  ``anchors_only`` re-measures the three anchors alone; ``thorough``
    measures more sizes and paths than a run needs.  ``meter`` (the meter process's socket, or
    None) asks for idle and loaded power too.
    """

    anchors_only: bool = False
    thorough: bool = False
    device: str = "auto"
    budget_s: float = 10.0
    meter: str | None = None


class Options(Record, frozen=True, kw_only=True, tag=True):
    options: tuple[Option, ...]


class Menu(Job[Options], frozen=True, kw_only=True, tag=True):
    """Ask every plug-in whether it can be used for this task here."""

    context: Context


class PowerLimits(Record, frozen=True, kw_only=True, tag=True):
    """``reason`` says why no limit can be set, ``clock_reason`` why clocks cannot be locked."""

    low_w: float | None = None
    high_w: float | None = None
    reason: str | None = None
    low_hz: float | None = None
    high_hz: float | None = None
    clock_reason: str | None = None


class PowerRange(Job[PowerLimits], frozen=True, kw_only=True, tag=True):
    """Ask the power guard what limits and clocks the GPUs in use allow."""


class Trained(Record, frozen=True, kw_only=True, tag=True):
    """``val_losses`` and ``qualities`` are at the rungs reached (the last at the end).
    ``train_s`` excludes start-up and evaluation.

    All but the energy and what is evaluated count from the training's very start;
    ``resumed_epochs`` of it came with the checkpoint.  ``reached``: it ended
    at ``until_quality``, ``overfitted``: where more training would only have overfitted.
    The weights are those of the best validation, after ``kept_epochs``, at which
    the quality was ``kept_quality``; None where the last ones are kept, as with a target quality
    and by the user's own loop.
    """

    epochs: float
    steps: int
    stopped: bool
    train_losses: tuple[float, ...]
    val_losses: tuple[float, ...]
    qualities: tuple[float, ...]
    step_losses: tuple[float, ...] = ()
    train_s: float
    startup_s: float
    samples_per_s: float
    peak_memory_bytes: int
    weights_sha256: str | None = None
    energy: EnergyWindow | None = None
    resumed_epochs: float = 0.0
    checkpoint_bytes: int | None = None
    reached: bool = False
    overfitted: bool = False
    kept_epochs: float | None = None
    kept_quality: float | None = None

    @property
    def quality(self) -> float | None:
        """That of the weights that are kept, on *validation*."""
        if self.kept_quality is not None:
            return self.kept_quality
        return self.qualities[-1] if self.qualities else None


class Train(Job[Trained], frozen=True, kw_only=True, tag=True):
    """Train a fresh model.  After each of ``rungs`` (epochs, ascending; below one, or between
    two, a share of an epoch's steps) the job reports where it stands and asks whether to go on:
    the share that is wrong where the metric is such a rate, else the validation loss.  ``epochs``
    is the horizon, above 0 and not always whole.

    ``checkpoint`` is a file of the training's whole state: where it is there the training goes
    on from it, and where the training pauses or ends it is written, with ``save_s`` also after
    an epoch when that many seconds have passed.  Those named in ``drop`` are deleted first.
    ``watch`` cuts a training whose loss climbs far above where it began, ``least_samples_per_s``
    one that in its first seconds trains on fewer.

    ``until_quality``: it ends at the first rung whose quality is that good.

    ``step_losses`` asks for the first N per-step training losses.  ``weights_out`` gets a
    safetensors state dict.  ``meter`` is the meter process's socket or None.
    ``device``: auto (CUDA where there is any), cpu or cuda.
    """

    task: TaskSpec
    recipe: Recipe
    epochs: int | float
    rungs: tuple[float, ...] = ()
    seed: int = 0
    time_limit_s: float | None = None
    step_losses: int = 0
    weights_out: str | None = None
    checkpoint: str | None = None
    save_s: float | None = None
    drop: tuple[str, ...] = ()
    watch: bool = False
    least_samples_per_s: float | None = None
    until_quality: float | None = None
    meter: str | None = None
    device: str = "auto"


class MeasuredThroughput(Record, frozen=True, kw_only=True, tag=True):
    """``waiting`` is the share of the time in which the next batch was waited for, where worker
    processes could load it;
    ``first_s`` is what the first step took, in which a compiled one is made;
    ``unsteady`` names the operators that may give other results with the same seed.
    """

    samples_per_s: float
    startup_s: float
    peak_memory_bytes: int
    waiting: float | None = None
    first_s: float | None = None
    energy_j_per_sample: float | None = None
    unsteady: tuple[str, ...] = ()


class Throughput(Job[MeasuredThroughput], frozen=True, kw_only=True, tag=True):
    """Measure training samples per second of one parallel layout for about ``budget_s`` seconds."""

    task: TaskSpec
    recipe: Recipe
    seed: int = 0
    budget_s: float = 1.0
    meter: str | None = None
    device: str = "auto"


class Stage(Record, frozen=True, kw_only=True):
    """One stage of a build: ``cached`` stages took no work."""

    name: str
    key: str
    cached: bool
    wall_s: float


class Built(Record, frozen=True, kw_only=True, tag=True):
    artifact: str
    sha256: str
    files: dict[str, str]
    size_bytes: int
    stages: tuple[Stage, ...]
    parameters: int | None = None
    flops_per_sample: float | None = None
    recovery_s: float = 0.0


class Build(Job[Built], frozen=True, kw_only=True, tag=True):
    """Compress, export and write one artifact folder.  Stages are cached under ``cache/`` by
    content.  ``weights`` is a safetensors file of the dense trained model; what trains does so
    on ``device``.
    """

    task: TaskSpec
    weights: str
    compress: tuple[Step, ...]
    runtime: str
    runtime_params: dict[str, Value] = {}
    threads: int
    batch_size: int
    seed: int
    recipe: Recipe
    recovery_epochs: float
    device: str = "auto"
    out: str


class Measured(Record, frozen=True, kw_only=True, tag=True):
    launch: Launch


class Measure(Job[Measured], frozen=True, kw_only=True, tag=True):
    """Load an artifact in a new interpreter and time single calls.

    Rows are drawn from ``rows`` in a seeded order, ``batch_size`` at a time.  Timing goes on
    for at least ``min_calls`` and until ``time_s`` has passed, at most ``max_calls``.
    ``outputs`` (a rows file) asks for the outputs of every row of ``score_rows``, untimed,
    after the timing.  ``meter`` is the meter process's socket, or None.

    ``every`` takes only each such row of ``score_rows``, the first included.

    ``most_s`` caps the timing of a slow candidate, after some 30 calls.  ``load_per_s`` is an
    open-loop load: requests are due at ``arrivals`` of that rate, seeded, whether or not the
    last one is answered; without it calls go one after another.

    ``boards``: GPUs are among the devices whose energy counts.
    """

    artifact: str
    rows: str
    batch_size: int
    threads: int
    seed: int = 0
    min_calls: int = 104
    max_calls: int = 5000
    time_s: float = 0.5
    warmup_s: float = 1.5
    most_s: float = 4.0
    load_per_s: float | None = None
    arrivals: Literal["poisson", "fixed"] = "poisson"
    score_rows: str | None = None
    every: int = 1
    outputs: str | None = None
    meter: str | None = None
    boards: bool = True


class Scored(Record, frozen=True, kw_only=True, tag=True):
    scores: Scores


class Score(Job[Scored], frozen=True, kw_only=True, tag=True):
    """Score recorded outputs (a rows file) against the targets of ``part``, or of each
    ``every``-th row of it.
    """

    task: TaskSpec
    part: str
    outputs: str
    every: int = 1
    seed: int = 0


class EnergySources(Record, frozen=True, kw_only=True, tag=True):
    sources: tuple[EnergySource, ...]


class Sources(Job[EnergySources], frozen=True, kw_only=True, tag=True):
    """Ask the meter process which energy sources there are."""


AnyJob = (
    Inspect
    | Outline
    | Probe
    | Menu
    | PowerRange
    | Train
    | Throughput
    | Build
    | Measure
    | Score
    | Sources
)
"""Any job, to decode one."""
Answer = (
    Inspection
    | Outlined
    | Probed
    | Options
    | PowerLimits
    | Trained
    | MeasuredThroughput
    | Built
    | Measured
    | Scored
    | EnergySources
)


class Result(Record, Generic[A], frozen=True, kw_only=True):
    """``answer`` or ``failure``, never both.  ``work_s`` is the time the child itself worked;
    ``wall_s`` is what the caller waited; their difference is process overhead.
    ``finished_s`` is the run's clock when the job ended.
    """

    answer: A | None = None
    failure: Failure | None = None
    reports: tuple[tuple[float, float], ...] = ()
    wall_s: float = 0.0
    work_s: float = 0.0
    peak_memory_bytes: int = 0
    cpu_s: float = 0.0
    finished_s: float = 0.0


AnyResult = Result[Answer]
"""Any result, to decode one."""
