"""What every stage of one run needs: the bridge, the limits, the clock, the listener."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import msgspec

from autotune.bridge import Bridge
from autotune.errors import ContractError, WorkerError
from autotune.records.budget import Budget, Effort
from autotune.records.hardware import Profile
from autotune.records.job import A, Job, Result, Train
from autotune.records.measurement import EnergySource
from autotune.records.plan import Recipe
from autotune.records.report import DeployTrial, TrainTrial
from autotune.records.task import Survey, TaskSpec

TRAIN_SHARE = 0.30
"""Share of a run's time for the train search; survey and verification have what no share takes."""
HARDWARE_SHARE = 0.3
"""Share of the train search's time for measuring throughput."""
FINAL_SHARE, FINAL_MOST = 0.08, 0.16
"""Shares of a run's time for the final training: the second where the first holds few epochs."""
DEPLOY_SHARE = 0.70
"""Share of the time left after training for the deploy search."""


class Listener(Protocol):
    """Is called as things happen.  The command line shows them; a notebook may ignore them."""

    def phase(self, name: str, share_s: float) -> None: ...

    def note(self, text: str) -> None: ...

    def trial(self, trial: TrainTrial | DeployTrial, best: str, left_s: float) -> None: ...


class Silent:
    """Ignores everything."""

    def phase(self, name: str, share_s: float) -> None:
        del name, share_s

    def note(self, text: str) -> None:
        del text

    def trial(self, trial: TrainTrial | DeployTrial, best: str, left_s: float) -> None:
        del trial, best, left_s


@dataclass
class RunContext:
    """One run in progress.

    ``journal`` is the file of its Optuna studies.  ``apart_s`` are the seconds of a final training
    that the user set apart from ``--time``; ``evaluation_s`` is about what one evaluation on
    *validation* takes.  ``phases`` and ``overheads`` (seconds by phase, and per job) are added to.
    """

    bridge: Bridge
    spec: TaskSpec
    budget: Budget
    effort: Effort
    listener: Listener
    profile: Profile
    survey: Survey
    sources: tuple[EnergySource, ...] = ()
    phases: dict[str, float] = field(default_factory=dict)
    overheads: list[float] = field(default_factory=list)
    journal: Path | None = None
    apart_s: float = 0.0
    evaluation_s: float = 0.0
    on_progress: Callable[[], None] = lambda: None

    @property
    def left_s(self) -> float:
        return self.effort.time_s + self.apart_s - self.bridge.now()

    @property
    def meter(self) -> str | None:
        """What a job's ``meter`` field gets: None where no counter can be read."""
        measured = any(s.label.startswith("measured") for s in self.sources)
        return "auto" if measured else None

    @property
    def max_drop(self) -> float | None:
        """The allowed fall of quality where it does not depend on the baseline."""
        if self.budget.max_drop is not None:
            return self.budget.max_drop
        task = self.survey.task
        return 0.01 if task.binary or task.rate else None

    def with_survey(self, **changes: Any) -> "RunContext":
        """A copy of this run with these fields of its survey replaced."""
        return replace(self, survey=msgspec.structs.replace(self.survey, **changes))

    def task(self, recipe: Recipe) -> TaskSpec:
        """The task with the recipe's values for the user's own hyperparameters."""
        return msgspec.structs.replace(self.spec, params=recipe.params)

    def timed(self, name: str, since_s: float) -> None:
        """Add the time since ``since_s`` to a phase."""
        self.phases[name] = self.phases.get(name, 0.0) + self.bridge.now() - since_s


INSPECT_S = 180.0
"""For an inspection: up to a third of it may go to loading the task once for all jobs."""


def ask(bridge: Bridge, job: Job[A], timeout_s: float) -> A:
    """The answer of a job that nothing can go on without.

    Raises:
        ContractError: it failed because of the user's model.
        WorkerError: it failed for another reason.
    """
    return answer_of(job, bridge.run(job, timeout_s=timeout_s))


def answer_of(job: Job[A], result: Result[A]) -> A:
    """A job's answer; raises as `ask` does."""
    failure = result.failure
    if failure is None:
        assert result.answer is not None
        return result.answer
    if failure.kind == "contract":
        raise ContractError(failure.message)
    log = f"\n{failure.log}" if failure.log else ""
    what = type(job).__name__.lower()
    if what in ("inspect", "outline", "train"):
        raise ContractError(_USER_FAULT.get(failure.kind, "{}").format(failure.message) + log)
    raise WorkerError(f"{what}: {failure.kind}: {failure.message}{log}")


_USER_FAULT = {
    "hang": "the model hangs: {} (loading it, one forward pass and one loss must end in time)",
    "oom": "the model needs more memory than there is: {}",
    "crash": "the model crashes the interpreter: {}",
    "killed": "loading the model or one forward pass was ended: {}",
    "exit": "the model file ends the program: {}; remove the exit() call",
    "nan": "training gives a loss that is not a number: {}",
    "error": "the model raises: {}",
}


def train_job(
    run: RunContext, recipe: Recipe, epochs: int | float, rungs: tuple[float, ...], **fields: Any
) -> Train:
    """A training of a recipe to its horizon, evaluated at ``rungs``; ``fields`` are the job's."""
    usual = {"seed": run.effort.seed, "until_quality": run.budget.target_quality}
    return Train(
        task=run.task(recipe),
        recipe=recipe,
        epochs=epochs,
        rungs=rungs,
        device=run.effort.device,
        **(usual | fields),
    )


def first_epoch(
    run: RunContext, recipe: Recipe, weights: str, limit_s: float | None = None
) -> Train:
    """One epoch of training, or the part of it that ``limit_s`` allows, to the file ``weights``."""
    return train_job(
        run, recipe, 1, (1,), until_quality=None, time_limit_s=limit_s, weights_out=weights
    )


def thread_counts(profile: Profile, effort: Effort) -> tuple[int, ...]:
    """``--threads``, or 1, 2, 4, ... and all usable cores."""
    if effort.threads is not None:
        return (effort.threads,)
    cores = max(1, math.floor(profile.cpu.cores))
    powers = [1 << i for i in range(cores.bit_length()) if 1 << i <= cores]
    return tuple(sorted({*powers, cores}))
