"""A simulated trainer: learning curves from a formula, pauses and checkpoints, no time passes.

    Train job -> rung by rung: curve(recipe, epochs, seed) -> report -> go or pause

A job with a checkpoint goes on from where it paused, so that what a search really trains, and
what it saves by resuming, can be counted.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from autotune.bridge.protocol import OnReport
from autotune.context import RunContext, Silent
from autotune.records import job as jobs
from autotune.records.budget import Budget, Effort
from autotune.records.job import Job, Result
from autotune.records.plan import Recipe
from autotune.records.report import Failure
from autotune.records.task import Layout, Option, Survey, TaskSpec
from tests.support import made
from tests.support.simulated import OPTIONS

Curve = Callable[[Recipe, float, int], tuple[float, float]]
"""(recipe, epochs, seed) -> validation loss and quality."""


def curve(recipe: Recipe, epochs: float, seed: int) -> tuple[float, float]:
    """Best at adamw's 3e-3; later is better; every seed alike."""
    del seed
    gap = abs(math.log10(recipe.lr / 3e-3)) + (0.0 if recipe.optimizer == "adamw" else 0.3)
    return gap + 1.0 / (1 + epochs), 0.95 - 0.1 * gap - 0.2 / (1 + epochs)


class Trainee(NamedTuple):
    epochs: float
    train_s: float


@dataclass
class Trainer:
    """Answers Train and Throughput jobs.

    ``epoch_s`` is what an epoch takes; ``fail`` decides on a failure before anything is trained;
    ``rate`` gives samples per second and bytes of a recipe.  The job numbered ``killed_at``
    is killed halfway to its rung, after its state was kept.
    """

    curve: Curve = curve
    epoch_s: Callable[[Recipe], float] = lambda recipe: 1.0
    fail: Callable[[jobs.Train], Failure | None] = lambda job: None
    rate: Callable[[Recipe], jobs.MeasuredThroughput | Failure] = lambda recipe: (
        jobs.MeasuredThroughput(samples_per_s=900.0, startup_s=0.1, peak_memory_bytes=10**8)
    )
    limits: jobs.PowerLimits = field(
        default_factory=lambda: jobs.PowerLimits(low_w=100.0, high_w=250.0)
    )
    killed_at: int | None = None
    asked: list[Job] = field(default_factory=list)
    states: dict[str, Trainee] = field(default_factory=dict)
    clock_s: float = 0.0
    trained: float = 0.0

    def run(self, job: Job, *, timeout_s: float, on_report: OnReport | None = None) -> Result:
        del timeout_s
        self.asked.append(job)
        if isinstance(job, jobs.PowerRange):
            return Result(answer=self.limits)
        result = (
            self._throughput(job)
            if isinstance(job, jobs.Throughput)
            else self._train(job, on_report)
        )
        self.clock_s += result.wall_s
        return msgspec.structs.replace(result, finished_s=self.clock_s)

    def _throughput(self, job: Any) -> Result:
        found = self.rate(job.recipe)
        if isinstance(found, Failure):
            return Result(failure=found, wall_s=0.2, work_s=0.2)
        return Result(answer=found, wall_s=0.6, work_s=0.6)

    def _train(self, job: Any, on_report: OnReport | None) -> Result:
        assert isinstance(job, jobs.Train)
        for name in job.drop:
            self.states.pop(name, None)
        failure = self.fail(job)
        if failure is not None:
            return Result(failure=failure, wall_s=0.2, work_s=0.2)
        start = self.states.get(job.checkpoint or "", Trainee(0.0, 0.0))
        at, reports = start.epochs, []
        go = True
        if len(self.asked) == self.killed_at:  # a while after an epoch was kept
            half = (job.rungs[0] - at) / 2
            if job.checkpoint:
                self.states[job.checkpoint] = Trainee(
                    at + half, start.train_s + half * self.epoch_s(job.recipe)
                )
            self.clock_s += half * self.epoch_s(job.recipe)
            raise KeyboardInterrupt
        began_s = self.clock_s
        for rung in job.rungs:
            at = max(at, rung)
            self.clock_s = began_s + (at - start.epochs) * self.epoch_s(job.recipe)
            loss, quality = self.curve(job.recipe, at, job.seed)
            reports.append((rung, loss, quality))
            go = on_report is None or on_report(rung, loss)
            reached = job.until_quality is not None and quality >= job.until_quality
            go = go and not reached
            if not go:
                break
        self.clock_s = began_s
        at = max(at, float(job.epochs)) if go else at
        seconds = (at - start.epochs) * self.epoch_s(job.recipe)
        self.trained += at - start.epochs
        whole = Trainee(at, start.train_s + seconds)
        if job.checkpoint:
            self.states[job.checkpoint] = whole
        answer = self._answer(job, whole, start, reports)
        reported = tuple((rung, loss) for rung, loss, _ in reports)
        return Result(answer=answer, wall_s=seconds + 0.1, work_s=seconds, reports=reported)

    def _answer(
        self,
        job: jobs.Train,
        whole: Trainee,
        start: Trainee,
        reports: list[tuple[float, float, float]],
    ) -> jobs.Trained:
        last = self.curve(job.recipe, whole.epochs, job.seed)
        return jobs.Trained(
            epochs=whole.epochs,
            steps=int(whole.epochs * 10),
            stopped=whole.epochs < job.epochs,
            train_losses=(),
            val_losses=tuple(loss for _, loss, _ in reports) or last[:1],
            qualities=tuple(quality for _, _, quality in reports) or last[1:],
            train_s=whole.train_s,
            startup_s=0.05,
            samples_per_s=900.0,
            peak_memory_bytes=10**8,
            resumed_epochs=start.epochs,
            checkpoint_bytes=1000 if job.checkpoint else None,
            reached=job.until_quality is not None and last[1] >= job.until_quality,
        )

    def now(self) -> float:
        return self.clock_s

    def preload(self, names: tuple[str, ...]) -> None:
        del names

    def close(self) -> None:
        return None


def run(
    trainer: Trainer,
    *,
    time_s: float = 600.0,
    options: tuple[Option, ...] = OPTIONS,
    layouts: tuple[Layout, ...] = (),
    budget: Budget | None = None,
    effort: Effort | None = None,
    **task: Any,
) -> RunContext:
    """A run at the beginning of its train search."""
    survey = Survey(task=made.info(**task), traits=made.traits(), options=options, layouts=layouts)
    spec = TaskSpec(kind="file", path="model.py")
    effort = effort or Effort(time_s=time_s)
    return RunContext(trainer, spec, budget or Budget(), effort, Silent(), made.profile(), survey)
