"""The user's limits, in SI units, and the effort of the search.

`cli.options` makes an option of each field from its annotation.
"""

from typing import Annotated, Literal

from autotune.records.base import Record, option

GoalName = Literal["quality", "latency", "energy", "throughput", "memory"]


class Limit(Record, frozen=True, kw_only=True):
    """``value`` in the budget's unit, or a factor of the deploy baseline when ``relative``."""

    value: float
    relative: bool = False


class Budget(Record, frozen=True, kw_only=True):
    """Every limit is optional.  ``latency`` is in seconds, ``energy`` in joules per sample,
    ``memory`` in bytes, ``train_*`` in seconds, joules and bytes for the final training.

    ``max_drop`` is the largest allowed drop of quality below the deploy baseline, in the metric's
    own unit; ``None`` means the default (0.01 for a rate, 1 % of the baseline's magnitude for a
    metric of the user's own).  ``load_per_s`` is the open-loop load, in requests per
    second, under which ``latency`` limits the response time.

    With ``target_quality`` the train search minimises the cost of training until that quality:
    eta * energy + (1 - eta) * maximum power * time (Zeus, NSDI'23).  ``eta`` 0, the default, is
    time alone and 1 energy alone.
    """

    latency: Annotated[
        Limit | None,
        option(
            "Latency of one call.",
            "5ms",
            unit="s",
        ),
    ] = None
    percentile: Annotated[
        float, option("Percentile of the latency limit.", least=1, most=99.99)
    ] = 95.0
    energy: Annotated[Limit | None, option("Energy per sample.", "20mJ", unit="J")] = None
    memory: Annotated[
        Limit | None,
        option("Peak memory of the serving process.", "200MB", unit="B"),
    ] = None
    load_per_s: Annotated[
        float | None,
        option("Requests per second: --latency then limits the response time.", "200/s"),
    ] = None
    min_quality: Annotated[float | None, option("Least quality.", "0.9")] = None
    max_drop: Annotated[
        float | None, option("Largest allowed drop of quality below the baseline's.", "0.01")
    ] = None
    accept_modelled_energy: Annotated[
        bool, option("Let modelled energy decide a limit (the verdict is labelled so).")
    ] = False
    train_time_s: Annotated[
        float | None,
        option("Limit for the final training, which is then not part of --time.", "5min"),
    ] = None
    train_energy_j: Annotated[
        float | None, option("Energy limit for the final training.", "2kJ")
    ] = None
    train_memory_bytes: Annotated[
        float | None, option("Peak memory limit for the final training.", "4GB")
    ] = None
    target_quality: Annotated[
        float | None,
        option("Train until this quality, at the least cost (time, or see --eta).", "0.95"),
    ] = None
    eta: Annotated[
        float | None,
        option(
            "Weight of energy in that cost: 0 (the default) time alone, 1 energy alone.",
            "0.5",
            least=0,
            most=1,
        ),
    ] = None
    goal: Annotated[GoalName | None, option("What to optimise; see the README.")] = None
    batch: Annotated[int | None, option("Deployment batch size; 1 by default.", least=1)] = None

    def resolved_goal(self) -> GoalName:
        """``goal``, or quality under a deployment limit, or latency."""
        if self.goal is not None:
            return self.goal
        limited = self.latency or self.energy or self.memory
        return "quality" if limited else "latency"


class Effort(Record, frozen=True, kw_only=True):
    """How long to search, and where.

    ``baseline`` is the folder of an earlier report whose plan is compared too.  ``keep_fp32`` holds
    patterns of modules that no quantization may touch.  ``only``/``without`` hold ``kind=name``
    or bare names, ``fix`` holds ``name=value`` of a search dimension; ``threads`` fixes the
    threads of training and serving.  ``search_only`` stops before the final training.
    ``epochs`` and ``steps`` (of the baseline's batch size, rounded up to whole epochs) are the
    length of the final training.
    ``allow_power_limit``: the GPU's power limit and highest clock may be set while it trains, and
    are restored.
    ``joint``: the recovery of a step that trains searches its own recipe, and the train search the
    model's width, where ``make_model(width=1.0)`` offers it.
    ``like`` is an earlier report's folder to start from, or ``auto``: the nearest one beside
    this run's.
    """

    time_s: Annotated[float, option("The whole run, over by at most a tenth.", "10min")] = 600.0
    trials: Annotated[int | None, option("Largest number of deploy trials.", least=1)] = None
    train_trials: Annotated[int | None, option("Largest number of train trials.", least=1)] = None
    epochs: Annotated[
        int | None,
        option("Epochs of the final training, which is then not part of --time.", least=1),
    ] = None
    steps: Annotated[
        int | None,
        option(
            "The same as steps of the baseline's batch size, rounded up to whole epochs.", least=1
        ),
    ] = None
    seed: Annotated[int, option("Random seed of search and training.")] = 0
    device: Annotated[str, option("Whether a GPU may be used.", choices=("auto", "cpu"))] = "auto"
    only: Annotated[tuple[str, ...], option("Search only these options.", "KIND=NAME")] = ()
    without: Annotated[tuple[str, ...], option("Exclude these.", "NAME")] = ()
    fix: Annotated[tuple[str, ...], option("Fix a search dimension at a value.", "NAME=VALUE")] = ()
    keep_fp32: Annotated[
        tuple[str, ...], option("Modules to leave unquantized, as patterns of names.", "'head.*'")
    ] = ()
    baseline: Annotated[
        str | None, option("An earlier report: its plan is compared too.", "DIR")
    ] = None
    threads: Annotated[int | None, option("Threads of training and serving.", least=1)] = None
    search_only: Annotated[bool, option("Stop before the final training.")] = False
    powercap_root: Annotated[
        str | None,
        option(
            "A powercap tree that the host shares with this virtual machine.", "DIR", folder=True
        ),
    ] = None
    powercap_label: Annotated[
        Literal["host", "simulated"],
        option("Origin of the --powercap-root tree: the host's counters, or a simulator's."),
    ] = "host"
    cpu_idle_w: Annotated[
        float | None,
        option("Measured idle power of this CPU, to calibrate the energy model.", "30W"),
    ] = None
    cpu_max_w: Annotated[
        float | None,
        option("Measured full-load power of this CPU, to calibrate the energy model.", "120W"),
    ] = None
    require_measured: Annotated[bool, option("Stop where energy cannot be measured.")] = False
    like: Annotated[
        str | None,
        option(
            "Start from an earlier report's recipes and plans, tried again; auto: the nearest one.",
            "DIR|auto",
        ),
    ] = None
    allow_power_limit: Annotated[
        bool,
        option(
            "Let training lower the GPU's power limit and clocks where energy counts; both are "
            "restored."
        ),
    ] = False
    joint: Annotated[
        bool,
        option("Also search the recovery training of pruned models and make_model's width=."),
    ] = False
