"""What the commands have in common: quantities, the limits as options, and their records."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from autotune.errors import AutotuneError, UsageError

if TYPE_CHECKING:
    from autotune.records.budget import Budget, Effort, Limit

F = TypeVar("F", bound=Callable[..., Any])
GOALS = ("quality", "latency", "energy", "throughput", "memory")


class Quantity(click.ParamType[Any, Any]):
    """A number with an SI unit, e.g. 5ms; with ``relative`` also a factor, e.g. 0.6x."""

    name = "quantity"

    def __init__(self, unit: str, *, relative: bool = False) -> None:
        self._unit = unit
        self._relative = relative

    def convert(self, value: Any, param: Any, ctx: Any) -> "float | Limit":
        from autotune import units

        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        try:
            if self._relative:
                return units.parse_limit(value, self._unit)
            return units.parse(value, self._unit)
        except AutotuneError as error:
            self.fail(str(error), param, ctx)


class Rate(click.ParamType[Any, Any]):
    """Requests per second, e.g. 200/s."""

    name = "rate"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        if isinstance(value, float):
            return value
        number, sign, unit = str(value).partition("/")
        try:
            rate = float(number)
        except ValueError:
            rate = 0.0
        if rate <= 0 or (sign and unit != "s"):
            self.fail(f"{value!r} is not a rate: give requests per second, e.g. 200/s", param, ctx)
        return rate


class Price(click.ParamType[Any, Any]):
    """What a machine costs an hour, e.g. h100-sxm-x8=24.50/h."""

    name = "price"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, float]:
        if isinstance(value, tuple):
            return value
        name, sign, amount = str(value).rpartition("=")
        try:
            price = float(amount.removesuffix("/h"))
        except ValueError:
            price = 0.0
        if not sign or not name or not amount.endswith("/h") or not 0 < price < float("inf"):
            self.fail(f"{value!r} is not a price: give NAME=2.50/h", param, ctx)
        return name, price


_POWERCAP = (
    click.option(
        "--powercap-root",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="A powercap tree that the host provides; readings are labelled so.",
    ),
    click.option(
        "--powercap-label",
        type=click.Choice(["host", "simulated"]),
        default="host",
        show_default=True,
        help="What the --powercap-root tree is.",
    ),
)


def powercap(command: F) -> F:
    """Where the processor's energy counters stand, if not where the kernel has them."""
    for option in reversed(_POWERCAP):
        command = option(command)
    return command


def check_powercap(root: Path | None) -> None:
    """Refuse a tree that is not there.

    Raises:
        UsageError: it names no folder.
    """
    if root is not None and not root.is_dir():
        raise UsageError(f"--powercap-root {root}: no such folder; give the tree's own folder")


def limits(command: F) -> F:
    """The budget options, shared by run, execute and verify."""
    options = (
        click.option(
            "--latency",
            type=Quantity("s", relative=True),
            metavar="5ms|0.6x",
            help="Latency of one call; 0.6x is relative to the dense eager baseline.",
        ),
        click.option(
            "--percentile",
            type=click.FloatRange(1, 99.99),
            help="Percentile that the latency limit is for.  [default: 95]",
        ),
        click.option(
            "--energy",
            type=Quantity("J", relative=True),
            metavar="20mJ|0.6x",
            help="Energy per sample.",
        ),
        click.option(
            "--memory",
            type=Quantity("B", relative=True),
            metavar="200MB|0.6x",
            help="Peak resident memory of the serving process.",
        ),
        click.option(
            "--load",
            type=Rate(),
            metavar="200/s",
            help="Requests per second: --latency then limits the response time.",
        ),
        click.option("--min-quality", type=float, metavar="0.9", help="Floor on quality itself."),
        click.option(
            "--on-undecided",
            type=click.Choice(["4", "pass", "fail"]),
            default="4",
            show_default=True,
            help="Exit code where a limit is undecided (not where it was not measured).",
        ),
        click.option(
            "--max-drop",
            type=float,
            metavar="0.01",
            help="How far quality may fall below the baseline's.",
        ),
        click.option(
            "--accept-modelled-energy",
            is_flag=True,
            help="Let a modelled energy decide (the verdict says so).",
        ),
        *_POWERCAP,
        click.option(
            "--cpu-idle-w",
            type=Quantity("W"),
            metavar="30W",
            help="Measured idle power of this CPU, to calibrate the model.",
        ),
        click.option(
            "--cpu-max-w",
            type=Quantity("W"),
            metavar="120W",
            help="Measured full-load power of this CPU, to calibrate the model.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def training_limits(command: F) -> F:
    """Limits on the final training, shared by run and execute."""
    options = (
        click.option(
            "--train-time",
            type=Quantity("s"),
            metavar="5min",
            help="Limit for the final training; sets it apart from --time.",
        ),
        click.option(
            "--train-energy",
            type=Quantity("J"),
            metavar="2kJ",
            help="Limit for the final training.",
        ),
        click.option(
            "--train-memory",
            type=Quantity("B"),
            metavar="4GB",
            help="Limit for the final training's peak memory.",
        ),
        click.option(
            "--target-quality",
            type=float,
            metavar="0.95",
            help="Train until this quality, at the least cost (time, or see --eta).",
        ),
        click.option(
            "--eta",
            type=click.FloatRange(0, 1),
            metavar="0.5",
            help="What energy weighs in that cost: 0 time alone, 1 energy alone.  [default: 0]",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def absent(command: F) -> F:
    """What to plan on a machine that is not here: the limits of run, in absolute numbers."""
    options = (
        click.option("--latency", type=Quantity("s"), metavar="5ms", help="Latency of one call."),
        click.option("--energy", type=Quantity("J"), metavar="20mJ", help="Energy per sample."),
        click.option(
            "--memory",
            type=Quantity("B"),
            metavar="8GB",
            help="Peak memory of a device while serving.",
        ),
        click.option("--min-quality", type=float, metavar="0.9", help="Said to be not predicted."),
        click.option("--max-drop", type=float, metavar="0.01", help="Said to be not predicted."),
        click.option(
            "--price",
            "prices",
            type=Price(),
            multiple=True,
            metavar="NAME=2.50/h",
            help="What a machine costs an hour, as its profile describes it.",
        ),
        click.option("--devices", type=click.IntRange(min=1), help="So many of its devices."),
        click.option("--nodes", type=click.IntRange(min=1), help="So many nodes of it."),
        click.option("--goal", type=click.Choice(GOALS), help="Plan deployment, for this goal."),
        click.option("--batch", type=click.IntRange(min=1), help="Deployment batch.  [default: 1]"),
        click.option(
            "--train-batch", type=click.IntRange(min=1), multiple=True, help="Samples a step."
        ),
        click.option("--precision", multiple=True, metavar="NAME", help="Train in this, e.g. fp8."),
        click.option("--epochs", type=click.IntRange(min=1), help="Epochs of the final training."),
        click.option(
            "--check",
            "measured",
            type=click.Path(path_type=Path),
            metavar="CSV",
            help="Compare with measured plans; docs/planning.md names the columns.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return training_limits(command)


def budget(given: dict[str, Any]) -> "Budget":
    """The limits among a command's options."""
    from autotune.records.budget import Budget

    if given.get("eta") is not None and given.get("target_quality") is None:
        raise UsageError("--eta weighs the cost of reaching a quality: give --target-quality too")
    return Budget(
        latency=given["latency"],
        percentile=95.0 if given["percentile"] is None else given["percentile"],
        energy=given["energy"],
        memory=given["memory"],
        train_time_s=given.get("train_time"),
        train_energy_j=given.get("train_energy"),
        train_memory_bytes=given.get("train_memory"),
        max_drop=given["max_drop"],
        min_quality=given["min_quality"],
        load_per_s=given["load"],
        goal=given.get("goal"),
        batch=given.get("batch"),
        accept_modelled_energy=given["accept_modelled_energy"],
        target_quality=given.get("target_quality"),
        eta=given.get("eta"),
    )


def absolute(given: dict[str, Any]) -> "Budget":
    """The limits among the options of `absent`."""
    from autotune.records.budget import Budget, Limit

    def limit(name: str) -> Limit | None:
        return None if given[name] is None else Limit(value=given[name])

    return Budget(
        latency=limit("latency"),
        energy=limit("energy"),
        memory=limit("memory"),
        train_time_s=given["train_time"],
        train_energy_j=given["train_energy"],
        train_memory_bytes=given["train_memory"],
        max_drop=given["max_drop"],
        min_quality=given["min_quality"],
        goal=given["goal"],
        batch=given["batch"],
    )


def changes(given: dict[str, Any]) -> dict[str, Any]:
    """The limits that were given, by their field: the rest of a report's budget stays."""
    fields = ("latency", "percentile", "energy", "memory", "max_drop", "min_quality")
    found = {name: given[name] for name in fields if given[name] is not None}
    if given["load"] is not None:
        found["load_per_s"] = given["load"]
    if given["accept_modelled_energy"]:
        found["accept_modelled_energy"] = True
    return found


def effort(given: dict[str, Any]) -> "Effort":
    """How hard to look, from a command's options.

    Raises:
        UsageError: a powercap tree that is not there.
    """
    from autotune.records.budget import Effort

    root = given["powercap_root"]
    check_powercap(root)
    known = {
        name: given[name]
        for name in (
            "time_s",
            "trials",
            "train_trials",
            "epochs",
            "steps",
            "seed",
            "device",
            "only",
            "without",
            "fix",
            "keep_fp32",
            "baseline",
            "threads",
            "cpu_idle_w",
            "cpu_max_w",
            "require_measured",
            "search_only",
            "allow_power_limit",
            "joint",
            "like",
        )
        if given.get(name) is not None
    }
    return Effort(
        powercap_root=str(root.resolve()) if root else None,
        powercap_label=given["powercap_label"],
        **known,
    )
