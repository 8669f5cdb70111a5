"""argv -> calls.  With `cli_profiles`, its part, the only file that prints.

Everything heavy is imported inside the commands, so that ``--help`` answers at once.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from autotune.cli import options, profiles
from autotune.errors import DISTRIBUTION, AutotuneError

if TYPE_CHECKING:
    from autotune.records.measurement import Verdict
    from autotune.records.report import DeployTrial, Report, TrainTrial
    from autotune.task import Task

F = TypeVar("F", bound=Callable[..., Any])


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=DISTRIBUTION)
def cli() -> None:
    """Tune a PyTorch model for the machine it runs on, under latency and energy budgets."""


@cli.command()
@click.argument("model")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@options.limits
@options.training_limits
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A checkpoint (safetensors, or torch.save of a state dict); counts as pretrained.",
)
@click.option("--pretrained", is_flag=True, help="The model comes trained: no train search.")
@click.option("--retrain", is_flag=True, help="Train over weights that look trained.")
@click.option(
    "--allow-power-limit",
    is_flag=True,
    help="Let training lower the GPU's power limit and clocks where energy counts; put back.",
)
@click.option(
    "--joint",
    is_flag=True,
    help="Search how pruned models recover too, and the width of make_model(width=1.0).",
)
@click.option("--search-only", is_flag=True, help="Stop before the final training.")
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    help="Epochs of the final training; sets it apart from --time.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="The same in steps of the baseline's batch size, rounded up to whole epochs.",
)
@click.option("--goal", type=click.Choice(options.GOALS), help="What to optimise; see the README.")
@click.option("--batch", type=click.IntRange(min=1), help="Deployment batch size.  [default: 1]")
@click.option(
    "--time",
    "time_s",
    type=options.Quantity("s"),
    default="10min",
    show_default=True,
    metavar="10min",
    help="The whole run, over by at most a tenth.",
)
@click.option("--trials", type=click.IntRange(min=1), help="At most so many deploy trials.")
@click.option("--train-trials", type=click.IntRange(min=1), help="At most so many train trials.")
@click.option("--only", multiple=True, metavar="KIND=NAME", help="Search only these.")
@click.option("--without", multiple=True, metavar="NAME", help="Leave these out.")
@click.option("--fix", multiple=True, metavar="NAME=VALUE", help="Hold a search dimension fast.")
@click.option(
    "--keep-fp32",
    multiple=True,
    metavar="'head.*'",
    help="Modules that no quantization may touch.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of training and serving.")
@click.option("--baseline", metavar="DIR", help="An earlier report: its plan races too.")
@click.option("--profile", metavar="NAME|FILE", help="A saved profile instead of probing.")
@click.option("--device", type=click.Choice(["auto", "cpu"]), default="auto", show_default=True)
@click.option(
    "--like",
    metavar="DIR|auto",
    help="Start from an earlier report's recipes and plans, tried anew; auto: the nearest one.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--require-measured", is_flag=True, help="Stop where energy cannot be measured.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Report folder.")
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Go on with an interrupted run.",
)
@click.option("--dry-run", is_flag=True, help="Say what the run would cost, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def run(model: str, args: tuple[str, ...], **given: Any) -> None:
    """Find, execute and verify the best plan for MODEL.

    MODEL is a Python file that defines a model and its data, or a module's dotted name.
    Arguments after -- reach it.
    """
    from autotune.task import Task
    from autotune.tune import resume, tune

    listener = _listener(given["as_json"])
    if given["resume"] is not None:
        with listener:
            report, folder = resume(given["resume"], listener=listener)
    else:
        from autotune.hardware import profiles as hardware_profiles

        profile = hardware_profiles.load_profile(given["profile"]) if given["profile"] else None
        task = Task.from_file(
            model,
            *args,
            weights=given["weights"],
            pretrained=given["pretrained"] or None,
            retrain=given["retrain"],
        )
        if given["dry_run"]:
            _dry_run(task, profile, given, listener)
            return
        with listener:
            report, folder = tune(
                task,
                options.budget(given),
                options.effort(given),
                profile=profile,
                out=given["out"],
                listener=listener,
            )
    _finish(report, folder, given)


@cli.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.argument("model")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The checkpoint that the plan was made with.",
)
@options.limits
@options.training_limits
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Report folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def execute(plan: Path, model: str, **given: Any) -> None:
    """Replay a PLAN on this machine: train, compress, build, verify, report."""
    import msgspec

    from autotune.report import run_folder
    from autotune.task import Task
    from autotune.tune import execute as replay

    loaded = run_folder.load_plan(plan)
    listener = _listener(given["as_json"])
    task = Task.from_file(model, *loaded.args, weights=given["weights"])
    budget = msgspec.structs.replace(options.budget(given), batch=loaded.deployment.batch_size)
    with listener:
        report, folder = replay(
            loaded, task, budget, options.effort(given), out=given["out"], listener=listener
        )
    _finish(report, folder, given)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("model", required=False)
@options.limits
@click.option("--json", "as_json", is_flag=True, help="Print the verdicts as JSON.")
def verify(folder: Path, model: str | None, **given: Any) -> None:
    """Measure a report's artifact again, in fresh processes, against its budgets or new ones.

    A limit that is given replaces the report's own; the others stay.
    Without MODEL quality is NOT_MEASURED, and the recorded one is shown with its date.
    """
    from autotune.records import codec
    from autotune.report import text as report_text
    from autotune.tune import verify as measure

    effort = options.effort(given)
    found = measure(folder, model, changes=options.changes(given), effort=effort)
    if given["as_json"]:
        click.echo(codec.encode(found, indent=2).decode(), nl=False)
    else:
        click.echo(report_text.verdicts(found.verdicts, found.percentile))
        if found.outputs_agree is not None:
            said = "agree" if found.outputs_agree else "DO NOT agree"
            click.echo(f"The artifact's outputs {said} with the recorded ones.")
    sys.exit(_status(found.exit_code, found.verdicts, given["on_undecided"]))


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
    """What this machine can measure and run, what is missing, and what mends it."""
    from autotune.hardware import doctor as hardware_doctor

    for line in hardware_doctor.doctor():
        click.echo(line)


def _dry_run(task: "Task", profile: Any, given: dict[str, Any], listener: "_Plain") -> None:
    from autotune.pipeline import forecast
    from autotune.records import codec
    from autotune.tune import dry_run

    effort = options.effort(given)
    with listener:
        found = dry_run(task, options.budget(given), effort, profile=profile, listener=listener)
    if given["as_json"]:
        click.echo(codec.encode(found, indent=2).decode(), nl=False)
    else:
        click.echo("\n".join(forecast.lines(found, effort.time_s)))


def _finish(report: "Report", folder: Path, given: dict[str, Any]) -> None:
    from autotune.records import codec
    from autotune.report import text as report_text

    if given["as_json"]:
        click.echo(codec.encode(report, indent=2).decode(), nl=False)
    else:
        click.echo(report_text.summary(report, str(folder)), nl=False)
    sys.exit(_status(report.exit_code, report.verdicts, given["on_undecided"]))


def _status(code: int, verdicts: "tuple[Verdict, ...]", on_undecided: str) -> int:
    """``--on-undecided`` decides where nothing worse than UNDECIDED stands in the way."""
    names = {verdict.verdict for verdict in verdicts}
    if code == 4 and names and names <= {"MET", "UNDECIDED"} and on_undecided != "4":
        return 0 if on_undecided == "pass" else 3
    return code


# -- progress ------------------------------------------------------------------------------


def _listener(quiet: bool) -> "_Plain":
    if quiet:
        return _Plain(to=None)
    return _Bar() if sys.stderr.isatty() else _Plain(to=sys.stderr)


class _Plain:
    """One line a phase, a note and every tenth trial; nothing at all without a stream."""

    def __init__(self, to: Any) -> None:
        self._to = to
        self._count = 0

    def __enter__(self) -> "_Plain":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def _line(self, text: str) -> None:
        if self._to is not None:
            click.echo(text, file=self._to)

    def phase(self, name: str, share_s: float) -> None:
        self._count = 0
        about = f" about {share_s:.0f} s" if share_s >= 1 else ""  # none is left, or it is done
        self._line(f"[{name}]{about}")

    def note(self, text: str) -> None:
        self._line(f"  {text}")

    def trial(self, trial: "TrainTrial | DeployTrial", best: str, left_s: float) -> None:
        self._count += 1
        if trial.state == "failed" and trial.failure is not None:
            said = trial.failure.message.splitlines() or [""]
            self._line(f"  trial {trial.number}: {trial.failure.kind}: {said[0]}")
        elif self._count % 10 == 1:
            self._line(f"  trial {trial.number}, {max(0.0, left_s):.0f} s left, best: {best}")


class _Bar(_Plain):
    """A progress bar of the phase with the best plan so far, time left and trials pruned."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress, ProgressColumn, Task, TextColumn
        from rich.progress_bar import ProgressBar

        class Elapsed(ProgressColumn):
            """The bar follows the clock: a phase is a share of --time."""

            def render(self, task: Task) -> ProgressBar:
                total = task.total or 1.0
                return ProgressBar(total, min(total, task.elapsed or 0.0), width=20)

        class Left(ProgressColumn):
            def render(self, task: Task) -> str:
                left = (task.total or 0.0) - (task.elapsed or 0.0)
                return f"{left:4.0f} s left" if left > 0 else "   finishing"

        super().__init__(to=None)
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description:<15}"),
            Elapsed(),
            Left(),
            TextColumn("{task.fields[text]}"),
            console=self._console,
            transient=True,
        )
        self._task: Any = None
        self._pruned = 0

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def phase(self, name: str, share_s: float) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._count = self._pruned = 0
        self._task = self._bar.add_task(name, total=max(share_s, 1.0), text="")

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, style="dim")

    def trial(self, trial: "TrainTrial | DeployTrial", best: str, left_s: float) -> None:
        self._count += 1
        self._pruned += trial.state == "pruned"
        pruned = f", {self._pruned} pruned" if self._pruned else ""
        if self._task is not None:
            self._bar.update(self._task, text=f"{self._count} trials{pruned}, best: {best}")


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
