"""The commands about profiles, and `plan`, which predicts from them."""

import shutil
import sys
from pathlib import Path
from typing import Any

import click

from autotune.cli import options
from autotune.records.budget import Budget, Effort

_PLANNED = (
    *("latency", "energy", "memory", "min_quality", "max_drop", "goal", "batch"),
    *("train_time_s", "train_energy_j", "train_memory_bytes"),
)
"""Limits of a plan for a machine that is not here: in absolute numbers."""
_EXITS = {"fits": 0, "off": 3, "unknown": 4}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Where to save it.")
@click.option("--quick", is_flag=True, help="Only what a run needs.")
@options.of(Effort, "device")
@options.of(Effort, *options.POWERCAP)
@click.option("--json", "as_json", is_flag=True, help="Print the profile as JSON.")
def profile(out: Path | None, quick: bool, as_json: bool, **given: Any) -> None:
    """Measure this machine, in less than 30 seconds, and save its profile.

    Idle and loaded power are measured where energy counters can be read.
    Where a processor or device has exactly one packaged datasheet of its very name, what was
    not measured is filled in from it.
    """
    from autotune.hardware import doctor
    from autotune.hardware import profiles as hardware_profiles
    from autotune.hardware import text as hardware_text
    from autotune.records import profiles as files

    effort = options.record(Effort, given)
    found, sheets = doctor.datasheets(
        doctor.profile(
            effort.device,
            quick=quick,
            powercap_root=effort.powercap_root,
            powercap_label=effort.powercap_label,
        )
    )
    path = hardware_profiles.save_profile(found, out)
    if as_json:
        click.echo(files.write(found).decode(), nl=False)
        return
    click.echo(hardware_text.profile(found, _width()))
    for name in sheets:
        click.echo(f"  filled in from the datasheet {name}")
    took = f" in {found.probe_s:.0f} s" if found.probe_s is not None else ""
    click.echo(
        f"measured{took}, saved as {path}; use it with --profile {path if out else path.stem}"
    )


@click.group()
def profiles() -> None:
    """Stored profiles: your own and those that ship with autotune."""


@profiles.command("list")
def list_() -> None:
    """Every stored profile."""
    from autotune.hardware import profiles as hardware_profiles
    from autotune.hardware import text as hardware_text

    click.echo(hardware_text.listing(hardware_profiles.entries(), _width()))


@profiles.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print the profile as JSON.")
def show(name: str, as_json: bool) -> None:
    """One profile by NAME or file, with the source of every figure."""
    from autotune.hardware import profiles as hardware_profiles
    from autotune.hardware import text as hardware_text
    from autotune.records import profiles as files

    found = hardware_profiles.load_profile(name)
    text = files.write(found).decode() if as_json else hardware_text.profile(found, _width())
    click.echo(text.rstrip("\n"))


@profiles.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
def diff(first: str, second: str) -> None:
    """What differs between the profiles A and B."""
    from autotune.hardware import profiles as hardware_profiles
    from autotune.hardware import text as hardware_text

    a, b = hardware_profiles.load_profile(first), hardware_profiles.load_profile(second)
    click.echo(hardware_text.difference(a, b, hardware_profiles.diff(a, b)))


@profiles.command()
@click.argument("name")
@options.of(Effort, "device")
def check(name: str, **given: Any) -> None:
    """Measure three quick anchors: does the profile NAME still fit this machine?

    Exit code 0: it fits; 3: it does not; 4: it cannot be checked now.
    """
    from autotune.hardware import doctor
    from autotune.hardware import profiles as hardware_profiles
    from autotune.hardware import text as hardware_text

    saved = hardware_profiles.load_profile(name)
    found = doctor.check(saved, options.record(Effort, given).device)
    click.echo(hardware_text.check(saved, found, _width()))
    sys.exit(_EXITS[found.state])


@click.command()
@click.argument("model")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--profile", "profiles", multiple=True, required=True, metavar="NAME|FILE", help="A machine."
)
@options.of(Budget, *_PLANNED, relative=False)
@options.of(Effort, "epochs")
@click.option(
    "--price",
    "prices",
    type=options.PriceParam(),
    multiple=True,
    metavar="NAME=2.50/h",
    help="What a machine costs an hour, as its profile describes it.",
)
@click.option("--devices", type=click.IntRange(min=1), help="Number of its devices.")
@click.option("--nodes", type=click.IntRange(min=1), help="Number of its nodes.")
@click.option(
    "--train-batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    help="Samples of a training step.",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    metavar="NAME",
    help="Precision of training, e.g. fp8.",
)
@click.option(
    "--check",
    "measured",
    type=click.Path(path_type=Path),
    metavar="CSV",
    help="Compare with measured plans; docs/planning.md names the columns.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the outlook as JSON.")
def plan(
    model: str,
    args: tuple[str, ...],
    *,
    profiles: tuple[str, ...],
    prices: tuple[tuple[str, float], ...],
    devices: int | None,
    nodes: int | None,
    batches: tuple[int, ...],
    precisions: tuple[str, ...],
    measured: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Predict MODEL's plans on machines that one does not have.

    Training is planned; with a limit on latency, energy or memory, or a goal, deployment.
    Nothing is measured, and quality is not predicted.  Arguments after -- reach MODEL.
    """
    from autotune.hardware import profiles as hardware_profiles
    from autotune.planning import plan as planning_plan
    from autotune.planning import text as planning_text
    from autotune.records import codec
    from autotune.task import Task

    budget, effort = options.budget_and_effort(given)
    machines = {name: hardware_profiles.load_profile(name) for name in profiles}
    found = planning_plan.plan(
        Task.from_file(model, *args),
        tuple(machines.values()),
        budget,
        devices=devices,
        nodes=nodes,
        prices={machines[n].name if n in machines else n: price for n, price in prices},
        batches=batches,
        precisions=precisions,
        epochs=effort.epochs,
        measured=measured,
    )
    shown = codec.encode(found, indent=2).decode() if as_json else planning_text.text(found)
    click.echo(shown, nl=False)
    sys.exit(planning_plan.exit_code(found))


def _width() -> int:
    """The terminal's, between 60 and 120 columns."""
    return max(60, min(120, shutil.get_terminal_size((100, 24)).columns))
