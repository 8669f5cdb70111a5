"""The command line: arguments to calls, results to text.  Nothing outside this folder prints.

Heavy modules are imported inside the commands, so that ``--help`` takes about 0.2 s.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autotune.cli import options, profiles, progress
from autotune.errors import DISTRIBUTION, AutotuneError
from autotune.records.budget import Budget, Effort

if TYPE_CHECKING:
    from autotune.records.measurement import Verdict
    from autotune.records.report import Report

_WEIGHTS = click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A checkpoint (safetensors, or torch.save of a state dict); counts as pretrained.",
)
_OUT = click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Report folder.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
_ON_UNDECIDED = click.option(
    "--on-undecided",
    type=click.Choice(["4", "pass", "fail"]),
    default="4",
    show_default=True,
    help="Exit code where a limit is undecided (not where it was not measured).",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=DISTRIBUTION)
def cli() -> None:
    """Tune a PyTorch model for the machine it runs on, under latency and energy budgets."""


@cli.command()
@click.argument("model")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@options.of(Budget)
@options.of(Effort)
@_WEIGHTS
@click.option("--pretrained", is_flag=True, help="The model comes trained: no train search.")
@click.option("--retrain", is_flag=True, help="Train over weights that look trained.")
@click.option("--profile", metavar="NAME|FILE", help="A saved profile instead of probing.")
@_OUT
@click.option(
    "--resume",
    "interrupted",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Continue an interrupted run.",
)
@click.option("--dry-run", is_flag=True, help="Estimate what the run would cost, and stop.")
@_ON_UNDECIDED
@_JSON
def run(
    model: str,
    args: tuple[str, ...],
    *,
    weights: Path | None,
    pretrained: bool,
    retrain: bool,
    profile: str | None,
    out: Path | None,
    interrupted: Path | None,
    dry_run: bool,
    on_undecided: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Find, execute and verify the best plan for MODEL.

    MODEL is a Python file that defines a model and its data, or a module's dotted name.
    Arguments after -- reach it.
    """
    from autotune.api import dry_run as estimate
    from autotune.api import resume, tune
    from autotune.hardware import profiles as hardware_profiles
    from autotune.task import Task

    budget, effort = options.budget_and_effort(given)
    with progress.listener(as_json) as listener:
        if interrupted is not None:
            report, folder = resume(interrupted, listener=listener)
        else:
            saved = hardware_profiles.load_profile(profile) if profile else None
            task = Task.from_file(
                model, *args, weights=weights, pretrained=pretrained or None, retrain=retrain
            )
            if dry_run:
                cost = estimate(task, budget, effort, profile=saved, listener=listener)
            else:
                report, folder = tune(
                    task, budget, effort, profile=saved, out=out, listener=listener
                )
    if dry_run and interrupted is None:
        _show_cost(cost, effort, as_json)
    else:
        _finish(report, folder, as_json, on_undecided)


@cli.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.argument("model")
@options.of(Budget, *options.SERVING, *options.TRAINING)
@options.of(Effort, *options.METERS)
@_WEIGHTS
@_OUT
@_ON_UNDECIDED
@_JSON
def execute(
    plan: Path,
    model: str,
    *,
    weights: Path | None,
    out: Path | None,
    on_undecided: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Replay a PLAN on this machine: train, compress, build, verify, report."""
    from autotune.api import execute as replay
    from autotune.report import run_folder
    from autotune.task import Task

    loaded = run_folder.load_plan(plan)
    budget, effort = options.budget_and_effort(given | {"batch": loaded.deployment.batch_size})
    task = Task.from_file(model, *loaded.args, weights=weights)
    with progress.listener(as_json) as listener:
        report, folder = replay(loaded, task, budget, effort, out=out, listener=listener)
    _finish(report, folder, as_json, on_undecided)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("model", required=False)
@options.of(Budget, *options.SERVING)
@options.of(Effort, *options.METERS)
@_ON_UNDECIDED
@_JSON
def verify(
    folder: Path, model: str | None, *, on_undecided: str, as_json: bool, **given: Any
) -> None:
    """Measure a report's artifact again, in fresh processes, against its budgets or new ones.

    A limit that is given replaces the report's own; the others stay.
    Without MODEL quality is NOT_MEASURED, and the recorded one is shown with its date.
    """
    from autotune.api import verify as measure
    from autotune.records import codec
    from autotune.report import text as report_text

    _, effort = options.budget_and_effort(given)
    changes = options.given_fields(Budget, given)
    found = measure(folder, model, changes=changes, effort=effort)
    if as_json:
        click.echo(codec.encode(found, indent=2).decode(), nl=False)
    else:
        click.echo(report_text.verdicts(found.verdicts, found.percentile))
        if found.outputs_agree is not None:
            said = "agree" if found.outputs_agree else "DO NOT agree"
            click.echo(f"The artifact's outputs {said} with the recorded ones.")
    sys.exit(_status(found.exit_code, found.verdicts, on_undecided))


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "kind",
    type=click.Choice(["text", "md", "html", "json", "csv"]),
    default="text",
    show_default=True,
)
def report(folder: Path, kind: str) -> None:
    """Render a report again from its report.json."""
    from autotune.records import codec
    from autotune.report import run_folder
    from autotune.report import text as report_text

    loaded = run_folder.load_report(folder)
    makers: dict[str, Callable[[], str]] = {
        "text": lambda: report_text.summary(loaded),
        "md": lambda: report_text.markdown(loaded),
        "html": lambda: report_text.html(loaded),
        "csv": lambda: report_text.csv(loaded),
        "json": lambda: codec.encode(loaded, indent=2).decode(),
    }
    click.echo(makers[kind](), nl=False)


cli.add_command(profiles.plan)
cli.add_command(profiles.profile)
cli.add_command(profiles.profiles)


@cli.command()
def doctor() -> None:
    """What this machine can measure and run, what is missing, and the remedies."""
    from autotune.hardware import doctor as hardware_doctor

    for line in hardware_doctor.doctor():
        click.echo(line)


def _show_cost(found: Any, effort: Effort, as_json: bool) -> None:
    from autotune.pipeline import cost_preview
    from autotune.records import codec

    if as_json:
        click.echo(codec.encode(found, indent=2).decode(), nl=False)
    else:
        click.echo("\n".join(cost_preview.lines(found, effort.time_s)))


def _finish(report: "Report", folder: Path, as_json: bool, on_undecided: str) -> None:
    from autotune.records import codec
    from autotune.report import text as report_text

    if as_json:
        click.echo(codec.encode(report, indent=2).decode(), nl=False)
    else:
        click.echo(report_text.summary(report, str(folder)), nl=False)
    sys.exit(_status(report.exit_code, report.verdicts, on_undecided))


def _status(code: int, verdicts: "tuple[Verdict, ...]", on_undecided: str) -> int:
    """``--on-undecided`` decides where nothing worse than UNDECIDED stands in the way."""
    names = {verdict.verdict for verdict in verdicts}
    if code == 4 and names and names <= {"MET", "UNDECIDED"} and on_undecided != "4":
        return 0 if on_undecided == "pass" else 3
    return code


def main() -> None:
    """The command line, with errors turned into one clear message and the right exit code."""
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except AutotuneError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
