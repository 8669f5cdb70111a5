"""One training as a trial: its jobs, what they cost in all, and how good it is.

    new_trial(recipe)                                       -> a trial of which nothing is trained
    resume(trial) -> Train job to the rung where it pauses  -> the same trial, further

A trial's time and energy are sums over its jobs.  Not known here: who proposes recipes, and
which trial deserves to go on (`halving`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from autotune.bridge import OnReport
from autotune.context import RunContext, train_job
from autotune.records import job as jobs
from autotune.records.plan import Recipe
from autotune.records.report import TrainTrial
from autotune.training import lengths, target_quality, throughput, width
from autotune.training.lengths import Length

SAVE_S = 1.0
"""A training under way saves its state at ends of epochs, at least so many seconds apart."""

STEP_LOSSES = 50
TOO_SLOW = 3.0
"""A trial that takes this many times as long as expected is not trained further."""
_NO_STEP = 1e-6  # of an epoch
_SLOWEST, _FASTEST = 0.25, 8.0  # epochs of a recipe for one of the baseline's
_MOST_KEPT_BYTES = 2 << 30
_SURE = 2  # further seeds
_LEAST_KEPT, _MOST_KEPT = 3, 12


@dataclass
class TrainState:
    """The train search under way: ``epochs`` are those of the baseline's final training, ``reach``
    those of a trial.  ``timed``: both follow from time, so that a recipe
    that is faster here trains for more epochs in the same time.

    ``trials`` are by number; ``messages`` are for the report; ``kept`` are the bytes of the states
    on disk by trial, ``to_delete`` the files of states to delete.
    """

    run: RunContext
    epochs: int | float
    reach: int | float
    timed: bool = False
    trials: list[TrainTrial] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    kept: dict[int, int] = field(default_factory=dict)
    to_delete: list[str] = field(default_factory=list)

    @property
    def baseline(self) -> TrainTrial | None:
        """The user's recipe, or the default: always the first."""
        return self.trials[0] if self.trials else None

    @property
    def winner(self) -> TrainTrial | None:
        return best(self.run, self.trials)

    @property
    def rung_count(self) -> int:
        """Rungs of every trial."""
        return len(lengths.shares_of(self.run, self.reach))

    @property
    def proxies(self) -> bool:
        """Whether trials are short trainings whose schedule ends with them (early in a schedule
        recipes cannot be compared), and the final training starts from scratch.
        """
        whole = self.run.budget.target_quality is not None  # whose cost is that of all of it
        return self.reach < lengths.NEARLY * self.epochs and not whole

    def length(self, recipe: Recipe) -> Length:
        """How long a trial is trained; rungs lie at the same shares of each recipe's own."""
        times = self._relative_epochs(recipe) if self.timed else 1.0
        epochs, reach = (lengths.rounded(self.run, times * n) for n in (self.epochs, self.reach))
        raw = [share * reach for share in lengths.shares_of(self.run, self.reach)]
        rungs = (*(lengths.rung(self.run, r) for r in raw[:-1]), float(reach))
        return Length(reach if self.proxies else epochs, rungs, lengths.looks(self.run, rungs))

    def final_epochs(self, trial: TrainTrial, more_s: float = 0.0) -> int | float:
        """Epochs of the final training with a trial's recipe: the trial's own horizon, or after a
        short training as many as fit its time and ``more_s`` (negative: less) at the speed that was
        measured, before the search and in the trial.
        """
        if not self.proxies and trial.epochs:
            return trial.epochs
        if not self.timed:
            return self.epochs
        times = self._relative_epochs(trial.recipe)
        epoch_s, rows = lengths.one_epoch_s(self.run), self.run.survey.task.train_rows
        if epoch_s is not None and trial.samples_per_s:
            seen = min(max(epoch_s * trial.samples_per_s / rows, _SLOWEST), _FASTEST)
            times = math.sqrt(times * seen)  # geometric mean of two short measurements
        more = max(more_s / epoch_s, -self.epochs / 2) if epoch_s else 0.0
        return lengths.rounded(self.run, times * (self.epochs + more))

    def expected_s(self, recipe: Recipe) -> float:
        """Seconds of a whole trial, by what the baseline's took; 0 before that is known."""
        base = self.baseline
        if base is None or base.state != "complete":
            return 0.0
        return (
            base.wall_s * self.length(recipe).reach / (self.reach * self._relative_epochs(recipe))
        )

    def shorten(self) -> bool:
        """Where the length follows from time and the baseline began to overfit before its end, no
        recipe is trained for longer than that.

        Returns:
            Whether it is so.
        """
        base = self.baseline
        if not self.timed or self.proxies or self.run.budget.target_quality is not None:
            return False
        if base is None or base.state != "complete":
            return False
        needed = base.rungs[-1] if base.rungs else 0.0
        if not 0 < needed < self.reach - _NO_STEP:
            return False
        self.messages.append(
            f"The baseline recipe began to overfit within {needed:g} of {self.reach} epochs: the "
            f"others were trained for as long as its {needed:g} epochs take."
        )
        self.epochs = self.reach = lengths.rounded(self.run, needed)
        return True

    def least_rate(self, recipe: Recipe) -> float | None:
        """Samples per second under which a trial would take many times its time, where that follows
        from the horizon: an optimizer may cost ten times the model's own work (Muon's on small
        matrices), and the final training would take as long.
        """
        whole_s = self.expected_s(recipe)
        if not self.timed or not whole_s:
            return None
        return self.length(recipe).reach * self.run.survey.task.train_rows / (TOO_SLOW * whole_s)

    def _relative_epochs(self, recipe: Recipe) -> float:
        """Epochs in the time of one of the baseline's."""
        run = self.run
        epoch_s = lengths.one_epoch_s(run)
        rate = throughput.speed(run.survey.layouts, recipe)
        other = run.survey.task.own_train or recipe.params != run.survey.task.params
        if other or epoch_s is None or not rate:
            return 1.0
        if recipe.compile:
            rate *= throughput.net_gain(run.survey.layouts, self.reach * epoch_s) or 1.0
        return min(max(rate * epoch_s / run.survey.task.train_rows, _SLOWEST), _FASTEST)


def new_trial(state: TrainState, recipe: Recipe, why: str) -> TrainTrial:
    """The next trial, of which nothing is trained yet."""
    epochs = state.length(recipe).epochs
    number = len(state.trials)
    return TrainTrial(number=number, recipe=recipe, state="pruned", why=why, epochs=epochs)


def resume(state: TrainState, trial: TrainTrial, on_report: OnReport) -> TrainTrial:
    """Train a trial further, from its checkpoint where it has one.

    Out of memory, it is tried once more with its batch computed in two parts.
    """
    done = _job(state, trial, on_report)
    failure = done.failure
    if failure is None or trial.rungs:
        return done
    recipe = done.recipe
    if failure.kind == "oom" and recipe.accumulate < recipe.batch_size:
        halved = msgspec.structs.replace(recipe, accumulate=2 * recipe.accumulate)
        again = _job(state, msgspec.structs.replace(trial, recipe=halved), on_report)
        return msgspec.structs.replace(again, wall_s=again.wall_s + done.wall_s)
    return done


def _job(state: TrainState, trial: TrainTrial, on_report: OnReport) -> TrainTrial:
    run, length = state.run, state.length(trial.recipe)
    rungs = tuple(r for r in length.looks if not trial.rungs or r > trial.rungs[-1])

    def ask(step: float, value: float) -> bool:
        go = on_report(step, value)
        return go and not step >= length.reach < length.epochs

    job = train_job(
        run,
        trial.recipe,
        length.epochs,
        rungs,
        step_losses=STEP_LOSSES,
        checkpoint=checkpoint_of(trial.number),
        save_s=SAVE_S,
        drop=tuple(state.to_delete),
        watch=trial.number > 0,
        least_samples_per_s=state.least_rate(trial.recipe) if trial.number > 0 else None,
        meter=run.meter,
    )
    state.to_delete.clear()
    result = run.bridge.run(job, timeout_s=timeout_s(run, length.reach), on_report=ask)
    overhead = max(0.0, result.wall_s - result.work_s)
    run.overheads.append(overhead)
    spent = {
        "wall_s": trial.wall_s + result.wall_s,
        "overhead_s": trial.overhead_s + overhead,
    }
    if result.failure is not None:
        return msgspec.structs.replace(trial, state="failed", failure=result.failure, **spent)
    done = result.answer
    assert done is not None
    if done.checkpoint_bytes:
        state.kept[trial.number] = done.checkpoint_bytes
    return msgspec.structs.replace(_further(state, trial, done, rungs), **spent)


def checkpoint_of(number: int) -> str:
    """The file of a trial's whole state."""
    return f"weights/trial-{number}.state"


def _further(
    state: TrainState, trial: TrainTrial, done: jobs.Trained, rungs: tuple[float, ...]
) -> TrainTrial:
    """A trial with what one more job has found."""
    length = state.length(trial.recipe)
    ended = done.reached or done.overfitted
    paused = done.stopped and done.epochs < length.reach - _NO_STEP and not ended
    ours = done.checkpoint_bytes is not None  # else each job of the user's loop counts its own
    train_s = done.train_s + (0.0 if ours else trial.train_s or 0.0)
    epochs = state.final_epochs(trial) if state.proxies else length.epochs
    whole = 1.0 if ended else epochs / max(done.epochs, 1e-9)  # projected to the final training
    energy, label = added_energy(trial, done)
    memory = max(trial.peak_memory_bytes or 0, done.peak_memory_bytes)
    further = msgspec.structs.replace(
        trial,
        state="pruned" if paused else "complete",
        rungs=(*trial.rungs, *rungs[: len(done.val_losses)]),
        values=(*trial.values, *done.val_losses[: len(rungs)]),
        quality=trial.quality if done.quality is None else done.quality,
        train_s=train_s,
        samples_per_s=done.samples_per_s,
        peak_memory_bytes=memory,
        energy_j=energy,
        energy_label=label,
        constraints=constraints(
            state.run, train_s * whole, energy * whole if energy else None, memory
        ),
    )
    costs = target_quality.reached_cost(state.run, further, done)
    return msgspec.structs.replace(further, costs=costs)


def added_energy(trial: TrainTrial, done: jobs.Trained) -> tuple[float | None, str | None]:
    """Joules of a training so far and their label; None where a part was not measured."""
    here = done.energy.total_j if done.energy else None
    known = trial.rungs[-1] if trial.rungs else 0.0
    if here is None or done.resumed_epochs > known + 1e-6:
        return None, None
    assert done.energy is not None
    if not trial.rungs:
        return here, done.energy.label
    return (None, None) if trial.energy_j is None else (trial.energy_j + here, done.energy.label)


def discard_states(state: TrainState, waiting: Sequence[int]) -> None:
    """Mark checkpoints that are likely never needed; the next job deletes them.

    Those of the best complete trials and of ``waiting`` ones, the most promising first, are kept
    as far as they fit into 2 GiB, at least three.
    """
    ended = [t.number for t in ranked(state.run, state.trials)]
    wanted = [n for n in (*ended[:_LEAST_KEPT], *waiting) if n in state.kept]
    left, total = set[int](), 0
    for number in wanted:
        total += state.kept[number]
        fits = total <= _MOST_KEPT_BYTES and len(left) < _MOST_KEPT
        if fits or len(left) < _LEAST_KEPT:
            left.add(number)
    for number in [n for n in state.kept if n not in left]:
        del state.kept[number]
        state.to_delete.append(checkpoint_of(number))


def constraints(
    run: RunContext, time_s: float, energy_j: float | None, memory_bytes: float
) -> dict[str, float]:
    """Measured / budget - 1 for each training budget that was given and measured."""
    limits = run.budget
    out = {}
    if limits.train_time_s:
        out["train_time"] = time_s / limits.train_time_s - 1
    if limits.train_energy_j and energy_j is not None:
        out["train_energy"] = energy_j / limits.train_energy_j - 1
    if limits.train_memory_bytes:
        out["train_memory"] = memory_bytes / limits.train_memory_bytes - 1
    return out


def timeout_s(run: RunContext, epochs: float) -> float:
    return min(3 * whole_s(run, epochs) + 15, max(60.0, run.left_s))


def whole_s(run: RunContext, epochs: float) -> float:
    """Seconds of a training at the slowest layout's speed."""
    rates = [s.samples_per_s for s in run.survey.layouts if s.samples_per_s]
    return epochs * run.survey.task.train_rows / min(rates) if rates else run.effort.time_s


def signed_quality(run: RunContext, quality: float) -> float:
    """Higher is better."""
    return quality if run.survey.task.higher_is_better else -quality


def objective(run: RunContext, trial: TrainTrial) -> float | None:
    """What the search minimises: the mean quality over a trial's seeds, lower being better."""
    quality = trial.quality_mean
    if quality is None:
        return None
    wanted = run.budget.target_quality
    if wanted is not None:
        distance = signed_quality(run, wanted) - signed_quality(run, quality)
        return target_quality.objective(trial, max(0.0, distance))
    loss = min(trial.values, default=0.0)
    # the loss breaks ties between equal accuracies; tanh keeps it from ever outweighing one
    charged = width.price(run, trial.recipe, quality)
    return -signed_quality(run, quality) + charged + 1e-3 * math.tanh(loss)


def ranked(run: RunContext, trials: Sequence[TrainTrial]) -> list[TrainTrial]:
    """Those trained to the end, the best first: within every budget before beyond one."""
    done = [t for t in trials if t.state == "complete" and t.quality is not None]
    return sorted(done, key=lambda t: (violation(t), objective(run, t), t.number))


def best(run: RunContext, trials: Sequence[TrainTrial]) -> TrainTrial | None:
    """The fully trained trial of highest quality among those within every budget; among none,
    the least violating one.  Where finalists have three seeds one of them wins.
    """
    found = ranked(run, trials)
    sure = [t for t in found if len(t.repeats) >= _SURE]
    return next(iter(sure or found), None)


def violation(trial: TrainTrial) -> float:
    """By how much a trial breaks the training budgets, in shares of each."""
    return sum(max(0.0, v) for v in trial.constraints.values())
