"""What a run shows of itself on standard error while it works."""

import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from autotune.records.report import DeployTrial, TrainTrial


def listener(quiet: bool) -> "Lines":
    if quiet:
        return Lines(to=None)
    return Bar() if sys.stderr.isatty() else Lines(to=sys.stderr)


class Lines:
    """One line a phase, a note and every tenth trial; nothing at all without a stream."""

    def __init__(self, to: Any) -> None:
        self._to = to
        self._count = 0

    def __enter__(self) -> "Lines":
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


class Bar(Lines):
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

    def __enter__(self) -> "Bar":
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
