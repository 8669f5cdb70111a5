"""The report (``autotune.report/1``) of one run, from which all texts are rendered."""

from typing import Literal

from autotune.records.base import Record
from autotune.records.budget import Budget, Effort
from autotune.records.hardware import Profile
from autotune.records.measurement import EnergySource, Interval, Verdict
from autotune.records.plan import Deployment, Plan, Recipe
from autotune.records.task import Survey


class Failure(Record, frozen=True, kw_only=True):
    """Why something failed.  ``kind``: oom, crash, hang, slow, nan, unsupported, error,
    exit, killed, contract.  ``log`` holds the last lines of its output.  ``least``: by
    ``step.parameter``, the value below which no deployment of this model can be built.
    ``never``: a form (`forms.ROAD`) that the model cannot be converted to, or a step that cannot be
    applied to it.
    """

    kind: str
    message: str
    log: str = ""
    least: dict[str, float] = {}
    never: str | None = None


class Quantiles(Record, frozen=True, kw_only=True):
    """Seconds per call at the plan's batch size.  ``value`` is the quantile at ``percentile``
    (the budget's), and ``low``..``high`` its 95 % interval.
    """

    p50: float
    p95: float
    p99: float
    samples: int
    low: float | None = None
    high: float | None = None
    percentile: float | None = None
    value: float | None = None


class TrainTrial(Record, frozen=True, kw_only=True):
    """A trial of one recipe.  ``values`` are the validation losses at the ``rungs`` (epochs).

    ``epochs`` is the horizon of its learning-rate schedule.  A ``pruned`` one was paused at its
    last rung.  ``repeats`` are a finalist's qualities with further random seeds,
    ``quality_interval`` the 95 % interval of the mean over three or more seeds.  With a target
    quality, ``costs`` are those of reaching it, by seed (None: not reached).
    """

    number: int
    recipe: Recipe
    state: Literal["complete", "pruned", "failed", "skipped"]
    epochs: int | float | None = None
    rungs: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    quality: float | None = None
    train_s: float | None = None
    samples_per_s: float | None = None
    peak_memory_bytes: int | None = None
    energy_j: float | None = None
    energy_label: str | None = None
    constraints: dict[str, float] = {}
    failure: Failure | None = None
    bound: str | None = None
    why: str = "sampler"
    wall_s: float = 0.0
    overhead_s: float = 0.0
    repeats: tuple[float, ...] = ()
    costs: tuple[float | None, ...] = ()
    quality_interval: tuple[float, float] | None = None

    @property
    def quality_mean(self) -> float | None:
        """The mean over a trial's seeds."""
        if self.quality is None:
            return None
        return (self.quality + sum(self.repeats)) / (1 + len(self.repeats))


class DeployTrial(Record, frozen=True, kw_only=True):
    """A trial of one deployment on *validation*.  ``drop`` is against the deploy baseline;
    ``drop_upper`` is its upper confidence bound with as many rows as *test* has, where those can
    certify the allowed drop.

    A ``pruned`` one was clearly worse on some of the rows already; ``stopped`` says so.  Figures
    are those of one launch; of several ``launches``, interleaved with other leading plans, where it
    led.
    """

    number: int
    deployment: Deployment
    state: Literal["complete", "pruned", "failed", "skipped"]
    latency_s: Quantiles | None = None
    energy_j_per_sample: float | None = None
    energy_modelled: Interval | None = None
    memory_bytes: int | None = None
    device_memory_bytes: int | None = None
    throughput_per_s: float | None = None
    size_bytes: int | None = None
    quality: float | None = None
    drop: float | None = None
    drop_upper: float | None = None
    constraints: dict[str, float] = {}
    failure: Failure | None = None
    bound: str | None = None
    stopped: str | None = None
    launches: int = 1
    why: str = "sampler"
    build_s: float = 0.0
    measure_s: float = 0.0
    wall_s: float = 0.0
    overhead_s: float = 0.0

    @property
    def feasible(self) -> bool:
        """Completed, and within every limit that constrains it."""
        return self.state == "complete" and all(c <= 0 for c in self.constraints.values())


class PlanResult(Record, frozen=True, kw_only=True):
    """A verified plan.  ``quality`` is on *test* with its 95 % interval.

    ``latency_s`` is the service time; ``response_s`` is there under an open-loop load.
    ``throughput_interval`` is the 95 % interval of the mean over launches, and
    ``memory_interval`` the range in which a further launch's peak would lie, at 95 %.
    ``disturbed`` counts launches that were measured again.  ``memory_bytes`` is the process's own,
    ``device_memory_bytes`` what it held of the GPU.
    """

    plan: Plan
    latency_s: Quantiles | None = None
    energy_j_per_sample: float | None = None
    energy_modelled: Interval | None = None
    throughput_per_s: float | None = None
    memory_bytes: int | None = None
    device_memory_bytes: int | None = None
    size_bytes: int | None = None
    load_s: float | None = None
    first_call_s: float | None = None
    quality: float | None = None
    quality_interval: tuple[float, float] | None = None
    worst_class_recall: float | None = None
    balanced_accuracy: float | None = None
    launches: int = 0
    response_s: Quantiles | None = None
    throughput_interval: Interval | None = None
    memory_interval: Interval | None = None
    disturbed: int = 0


class Execution(Record, frozen=True, kw_only=True):
    """Results of the final training and build.  ``target_cost`` is that of reaching the target
    quality (seconds, or joules where energy weighs in it); None where it was not reached.
    ``kept_epochs``: the epochs after which the weights were the best, which are kept; None where
    those are the last ones.
    """

    train_s: float | None = None
    train_energy_j: float | None = None
    train_energy_label: str | None = None
    train_memory_bytes: int | None = None
    samples_per_s: float | None = None
    train_losses: tuple[float, ...] = ()
    step_losses: tuple[float, ...] = ()
    validation_quality: float | None = None
    target_cost: float | None = None
    kept_epochs: float | None = None
    recovery_s: float | None = None
    build_s: float | None = None


class Artifact(Record, frozen=True, kw_only=True):
    """The shipped folder, relative to the report.  ``sha256`` is of its sorted file hashes."""

    folder: str
    runtime: str
    files: dict[str, str] = {}
    sha256: str
    size_bytes: int


class Why(Record, frozen=True, kw_only=True):
    """Explanation of the choice, in fields and in words."""

    binding: str | None = None
    runner_up: str | None = None
    margin: str | None = None
    knobs: dict[str, str] = {}
    refused: tuple[str, ...] = ()
    looser: str | None = None
    kept_baseline: bool = False
    text: tuple[str, ...] = ()


class SearchCost(Record, frozen=True, kw_only=True):
    """Cost of the search itself."""

    wall_s: float
    by_phase_s: dict[str, float] = {}
    trials: int = 0
    failed: int = 0
    skipped_by_bound: int = 0
    energy_j: float | None = None
    overhead_s: float = 0.0
    overhead_median_s: float | None = None
    break_even_inferences: float | None = None


class Report(Record, frozen=True, kw_only=True):
    """``status`` is ``complete``, ``interrupted`` (Ctrl-C or time) or ``running``."""

    schema: str = "autotune.report/1"
    status: Literal["complete", "interrupted", "running"]
    created_utc: str
    task: str
    profile: Profile
    budget: Budget
    effort: Effort
    survey: Survey
    goal: str
    exit_code: int
    train_trials: tuple[TrainTrial, ...] = ()
    deploy_trials: tuple[DeployTrial, ...] = ()
    train_baseline: TrainTrial | None = None
    baseline: PlanResult | None = None
    lossless: PlanResult | None = None
    earlier: PlanResult | None = None
    chosen: PlanResult | None = None
    verdicts: tuple[Verdict, ...] = ()
    energy_sources: tuple[EnergySource, ...] = ()
    pareto: tuple[int, ...] = ()
    why: Why = Why()
    execution: Execution = Execution()
    artifact: Artifact | None = None
    search_cost: SearchCost
    software: dict[str, str] = {}
    messages: tuple[str, ...] = ()
