"""The limits a person gave, in SI units, and the effort they allow."""

from typing import Literal

from autotune.records.base import Record

GoalName = Literal["quality", "latency", "energy", "throughput", "memory"]


class Limit(Record, frozen=True, kw_only=True):
    """``value`` in the budget's unit, or a factor of the deploy baseline when ``relative``."""

    value: float
    relative: bool = False


class Budget(Record, frozen=True, kw_only=True):
    """Every limit is optional.  ``latency`` is in seconds, ``energy`` in joules per sample,
    ``memory`` in bytes, ``train_*`` in seconds, joules and bytes for the final training.

    ``max_drop`` is the largest fall of quality against the deploy baseline in the metric's
    own unit; ``None`` means the default (0.01 for a rate, 1 % of the baseline's magnitude
    for a metric of the user's own).  ``load_per_s`` is the open-loop load, in requests per
    second, under which ``latency`` limits the response time.

    ``target_quality`` turns the train search round: the least cost of training until that quality.
    ``eta`` weighs energy in it (Zeus, NSDI'23): eta * energy + (1 - eta) * largest power * time;
    0, the default, is time alone and 1 energy alone.
    """

    latency: Limit | None = None
    percentile: float = 95.0
    energy: Limit | None = None
    memory: Limit | None = None
    train_time_s: float | None = None
    train_energy_j: float | None = None
    train_memory_bytes: float | None = None
    max_drop: float | None = None
    min_quality: float | None = None
    goal: GoalName | None = None
    batch: int | None = None
    accept_modelled_energy: bool = False
    load_per_s: float | None = None
    target_quality: float | None = None
    eta: float | None = None

    def resolved_goal(self) -> GoalName:
        """``goal``, or quality under a deployment limit, or latency."""
        if self.goal is not None:
            return self.goal
        limited = self.latency or self.energy or self.memory
        return "quality" if limited else "latency"


class Effort(Record, frozen=True, kw_only=True):
    """How hard to look, and where.

    ``baseline`` is the folder of an earlier report whose plan races too.  ``keep_fp32`` holds
    patterns of modules that no quantization may touch.  ``only``/``without`` hold ``kind=name``
    or bare names, ``fix`` holds ``name=value`` of a search dimension; ``threads`` fixes the
    threads of training and serving.  ``search_only`` stops before the final training.
    ``epochs`` and ``steps`` (of the baseline's batch size, rounded up to whole epochs) are the
    length of the final training.
    ``allow_power_limit``: the GPU's power limit and highest clock may be set while it trains, and
    are put back.
    ``joint``: the recovery of a step that trains searches its own recipe, and the train search the
    model's width, where ``make_model(width=1.0)`` offers it.
    ``like`` is an earlier report's folder to start from, or ``auto``: the nearest one beside
    this run's.
    """

    time_s: float = 600.0
    trials: int | None = None
    train_trials: int | None = None
    epochs: int | None = None
    steps: int | None = None
    seed: int = 0
    device: str = "auto"
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    fix: tuple[str, ...] = ()
    keep_fp32: tuple[str, ...] = ()
    baseline: str | None = None
    threads: int | None = None
    search_only: bool = False
    powercap_root: str | None = None
    powercap_label: Literal["host", "simulated"] = "host"
    cpu_idle_w: float | None = None
    cpu_max_w: float | None = None
    require_measured: bool = False
    like: str | None = None
    allow_power_limit: bool = False
    joint: bool = False
