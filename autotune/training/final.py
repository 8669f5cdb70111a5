"""The final training: the winner's recipe to the horizon, metered, to `WEIGHTS`.

    winner of whole trials ------> resumes the trial's checkpoint
           of short trainings ---> starts from scratch; the trial is kept where that was better

Interrupted, it resumes from its own checkpoint.  Not known here: how the winner was found.
"""

from autotune import units
from autotune.context import RunContext, answer_of, ask, first_epoch, train_job
from autotune.records import job as jobs
from autotune.records.plan import Recipe
from autotune.records.report import Execution, TrainTrial
from autotune.training import lengths, search_space, target_quality
from autotune.training import trial as training_trial
from autotune.training.search import fitting
from autotune.training.trial import TrainState

WEIGHTS = "weights/dense.safetensors"
_CHECKPOINT = "weights/final.state"


def one_epoch(run: RunContext) -> tuple[float, float]:
    """Train the baseline recipe for one epoch, to `WEIGHTS`; seconds of one evaluation and of
    one epoch.
    """
    recipe = fitting(run, search_space.baseline(run.survey))
    job = first_epoch(run, recipe, WEIGHTS)
    result = run.bridge.run(job, timeout_s=1800.0)
    done = answer_of(job, result)
    return max(0.0, result.work_s - done.startup_s - done.train_s), done.train_s


def expected_s(run: RunContext, epochs: float, trial: TrainTrial | None) -> float:
    """Seconds of what is still to be trained, by the trial's pace or the measured throughput."""
    if trial is not None and trial.rungs and trial.train_s:
        ahead = epochs - (trial.rungs[-1] if trial.epochs == epochs else 0.0)
        return ahead * trial.train_s / trial.rungs[-1]
    return epochs * (lengths.one_epoch_s(run) or 0.0)


def last(
    state: TrainState, winner: TrainTrial, more_s: float = 0.0
) -> tuple[Execution, int | float]:
    """The final training with the winner's recipe, and its epochs.

    After short trainings it starts from scratch and may take ``more_s`` seconds beyond its own
    time.  Where it could be no longer than the winner's trial, or turns out no better, the trial
    is kept.

    Raises:
        ContractError: it fails (it did not in the search).
    """
    run, epochs = state.run, state.final_epochs(winner, more_s)
    if not state.proxies or winner.epochs is None:
        return final(run, winner.recipe, epochs, winner), epochs
    short = "Each recipe was tried in a short training, as the search had no time for longer ones; "
    if epochs <= winner.epochs:
        state.messages.append(f"{short}nor had the final one: the winner's trial is kept.")
        return final(run, winner.recipe, winner.epochs, winner), winner.epochs
    state.messages.append(f"{short}the final training started from scratch, for {epochs} epochs.")
    done = final(run, winner.recipe, epochs)
    before, after = winner.quality, done.validation_quality
    if before is None or after is None:
        return done, epochs
    if training_trial.signed_quality(run, after) >= training_trial.signed_quality(run, before):
        return done, epochs
    state.messages.append(
        f"A training of {epochs} epochs was no better on validation than the trial's "
        f"{winner.epochs} ({units.metric(after)} against {units.metric(before)}): "
        "the trial's weights are kept."
    )
    return final(run, winner.recipe, winner.epochs, winner), winner.epochs


def final(
    run: RunContext, recipe: Recipe, epochs: int | float, trial: TrainTrial | None = None
) -> Execution:
    """Train the winner to the horizon, with energy metered, to `WEIGHTS`; from its ``trial``'s
    checkpoint where there is one.  Interrupted, it resumes from its own.

    Raises:
        ContractError: it fails (it did not in the search).
    """
    own = run.survey.task.own_train
    checkpoint = _CHECKPOINT if trial is None or own else training_trial.checkpoint_of(trial.number)
    before = trial if trial is not None and not own else None
    ended = before is not None and (before.rungs[-1:] == (epochs,) or any(before.costs))
    rungs = _final_rungs(run, before, epochs, ended=ended)
    job = train_job(
        run,
        recipe,
        epochs,
        rungs,
        step_losses=training_trial.STEP_LOSSES,
        weights_out=WEIGHTS,
        checkpoint=checkpoint,
        save_s=training_trial.SAVE_S,
        meter=None if ended else run.meter,
    )
    done = ask(run.bridge, job, max(600.0, 3 * training_trial.whole_s(run, epochs) + 60))
    energy, label = _energy(before, done, ended=ended)
    return Execution(
        train_s=done.train_s,
        train_energy_j=energy,
        train_energy_label=label,
        train_memory_bytes=max(done.peak_memory_bytes, _memory(before, done)),
        samples_per_s=done.samples_per_s,
        train_losses=done.train_losses,
        step_losses=done.step_losses,
        validation_quality=done.quality,
        target_cost=target_quality.cost(run, done.train_s, energy) if done.reached else None,
        kept_epochs=done.kept_epochs,
    )


def _final_rungs(
    run: RunContext, before: TrainTrial | None, epochs: float, *, ended: bool
) -> tuple[float, ...]:
    """Where the final training is evaluated; one that has ended already, at its end."""
    first = before.rungs[-1] if before is not None and before.rungs else 0.0
    rungs = tuple(r for r in lengths.looks(run, (float(epochs),)) if r > first)
    return (first, *rungs) if ended else rungs


def _energy(
    before: TrainTrial | None, done: jobs.Trained, *, ended: bool
) -> tuple[float | None, str | None]:
    """Joules of the whole training, the trial's part included, and their label."""
    fresh = TrainTrial(number=0, recipe=Recipe(), state="pruned")
    if before is None or not done.resumed_epochs:  # its state was gone: trained from the start
        return training_trial.added_energy(fresh, done)
    if ended:
        return before.energy_j, before.energy_label
    return training_trial.added_energy(before, done)


def _memory(before: TrainTrial | None, done: jobs.Trained) -> int:
    known = before is not None and done.resumed_epochs
    return (before.peak_memory_bytes or 0) if known and before is not None else 0
