"""The train search: the recipe, the batch size and the split, under training budgets.

1. *Splits*: the throughput of every parallelism split is measured (`splitting`).
2. *Search*: constrained TPE over recipes; successive halving on the validation loss, among
   trials of one schedule (one cycle is behind halfway, by design).  The
   user's recipe and the default (Adam 1e-3, batch 32) are always trained to the end.
3. *Final*: the winner is trained once more in full, metered, to a checkpoint.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from autotune.control import cost, recipes, reuse, space
from autotune.control.run import Run, must
from autotune.control.search import Proposal, Search
from autotune.errors import ContractError
from autotune.records import job as jobs
from autotune.records.plan import Recipe
from autotune.records.report import Execution, Failure, TrainTrial

WEIGHTS = "weights/dense.safetensors"
_ETA = 3
_MOST_REPEATS = 30


@dataclass
class Outcome:
    """The train search as it goes on: ``epochs`` is the horizon of every schedule, ``reach``
    how far a trial is trained.
    """

    run: Run
    epochs: int
    reach: int
    trials: list[TrainTrial] = field(default_factory=list)

    @property
    def baseline(self) -> TrainTrial | None:
        """The user's recipe, or the default: always the first."""
        return self.trials[0] if self.trials else None

    @property
    def winner(self) -> TrainTrial | None:
        return best(self.run, self.trials)


def fitting(run: Run, recipe: Recipe) -> Recipe:
    """The recipe, its split replaced where this machine does not have it."""
    legal = recipes.splits(run.survey.options, run.profile, run.effort)
    if (recipe.parallel, recipe.ranks, recipe.threads) in legal:
        return recipe
    parallel, ranks, threads = legal[0]
    return msgspec.structs.replace(recipe, parallel=parallel, ranks=ranks, threads=threads)


# -- 2: search -----------------------------------------------------------------------------


def search(outcome: Outcome, until_s: float) -> None:
    """Try recipes until the run's clock reads ``until_s`` or the trials are used up."""
    run, trials = outcome.run, outcome.trials
    legal = recipes.splits(run.survey.options, run.profile, run.effort)
    study = Search(
        recipes.train_space(run.survey, run.effort),
        seed=run.effort.seed,
        constraints=("train_energy", "train_memory", "train_time"),
        journal=run.journal,
    )
    default = recipes.baseline(run.survey)
    _pinned(outcome, study, default, "the baseline recipe", until_s)
    plain = Recipe(params=default.params)
    if msgspec.structs.replace(default, threads=1) != plain:
        _pinned(outcome, study, plain, "the default recipe", until_s)
    guided = reuse.training(run, study, recipes.seeds(study.space, default))
    seen = {space.canonical(t.recipe) for t in trials}
    repeats = 0
    limit = run.effort.train_trials or 10_000
    while run.bridge.now() < until_s and len(trials) < limit and repeats < _MOST_REPEATS:
        proposal = guided.ask()
        recipe = _recipe(run, proposal, legal)
        if space.canonical(recipe) in seen:
            repeats += 1
            guided.abandon(proposal.number)
            continue
        seen.add(space.canonical(recipe))
        repeats = 0
        trial = _skipped(run, recipe, outcome.epochs, len(trials), proposal.why) or _train(
            outcome, recipe, proposal.why, proposal, guided
        )
        guided.tell(
            proposal.number,
            _objective(run, trial),
            trial.constraints,
            pruned=trial.state == "pruned",
        )
        _keep(outcome, trial, until_s)


def _keep(outcome: Outcome, trial: TrainTrial, until_s: float) -> None:
    run = outcome.run
    outcome.trials.append(trial)
    winner = outcome.winner
    text = f"{winner.recipe.optimizer} lr {winner.recipe.lr:.2g}" if winner else "none yet"
    run.listener.trial(trial, text, until_s - run.bridge.now())
    run.on_progress()


def _recipe(run: Run, proposal: Proposal, legal: tuple[tuple[str, int, int], ...]) -> Recipe:
    batch = int(proposal.values["batch_size"])
    precision = str(proposal.values.get("precision", "fp32"))
    split = recipes.fastest_split(run.survey.splits, batch, precision, legal)
    return recipes.recipe(proposal.values, split)


def _pinned(outcome: Outcome, study: Search, recipe: Recipe, why: str, until_s: float) -> None:
    """Train a recipe to the end whatever the others do; tell the study where it lies inside."""
    run = outcome.run
    recipe = fitting(run, recipe)
    trial = _train(outcome, recipe, why)
    values = recipes.values_of(recipe, study.space)
    if values is not None:
        study.enqueue(values, why)
        proposal = study.ask()
        for step, value in zip(trial.rungs, trial.values, strict=True):
            study.report(proposal.number, step, value, among=recipe.schedule)
        study.tell(proposal.number, _objective(run, trial), trial.constraints)
    _keep(outcome, trial, until_s)


def _train(
    outcome: Outcome,
    recipe: Recipe,
    why: str,
    proposal: Proposal | None = None,
    study: Search | reuse.Guided | None = None,
) -> TrainTrial:
    """One training job as a trial; without a study it is never cut short."""
    run, epochs, number = outcome.run, outcome.epochs, len(outcome.trials)
    rungs = rungs_of(outcome.reach)

    def go_on(step: int, value: float) -> bool:
        if step >= outcome.reach < epochs:
            return False
        if study is None or proposal is None or not math.isfinite(value):
            return True
        return study.report(proposal.number, step, value, among=recipe.schedule)

    job = jobs.Train(
        task=run.task(recipe),
        recipe=recipe,
        epochs=epochs,
        rungs=rungs,
        seed=run.effort.seed,
        meter=run.meter,
        device=run.effort.device,
    )
    result = run.bridge.run(job, timeout_s=_timeout(run, outcome.reach), on_report=go_on)
    overhead = max(0.0, result.wall_s - result.work_s)
    run.overheads.append(overhead)
    if result.failure is not None:
        return TrainTrial(
            number=number,
            recipe=recipe,
            state="failed",
            failure=result.failure,
            why=why,
            wall_s=result.wall_s,
            overhead_s=overhead,
        )
    assert isinstance(result.answer, jobs.Trained)
    return _trial(outcome, result, recipe, rungs, why)


def _trial(
    outcome: Outcome, result: jobs.Result, recipe: Recipe, rungs: tuple[int, ...], why: str
) -> TrainTrial:
    run, done = outcome.run, result.answer
    assert isinstance(done, jobs.Trained)
    pruned = done.stopped and done.epochs < outcome.reach
    energy = done.energy.total_j if done.energy else None
    whole = outcome.epochs / max(1, done.epochs)  # what is cut short is projected to the horizon
    return TrainTrial(
        number=len(outcome.trials),
        recipe=recipe,
        state="pruned" if pruned else "complete",
        rungs=rungs[: len(done.val_losses)],
        values=done.val_losses[: len(rungs)],
        quality=done.qualities[-1] if done.qualities else None,
        train_s=done.train_s,
        samples_per_s=done.samples_per_s,
        peak_memory_bytes=done.peak_memory_bytes,
        energy_j=energy,
        constraints=_constraints(
            run, done.train_s * whole, energy * whole if energy else None, done.peak_memory_bytes
        ),
        why=why,
        wall_s=result.wall_s,
        overhead_s=max(0.0, result.wall_s - result.work_s),
    )


def _constraints(
    run: Run, time_s: float, energy_j: float | None, memory_bytes: float
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


def _skipped(run: Run, recipe: Recipe, epochs: int, number: int, why: str) -> TrainTrial | None:
    """A trial that a provable lower bound already rules out."""
    traits, limits = run.survey.traits, run.budget
    if recipe.params != run.survey.task.params:
        return None  # another model: these traits bound nothing
    if run.survey.task.own_train:  # what the user's own loop does is not known
        return None
    bound = None
    least_s = cost.train_bound_s(recipe, epochs, run.survey.task.train_rows, traits, run.profile)
    least_bytes = cost.train_memory_bound_bytes(recipe, traits)
    if limits.train_time_s and least_s is not None and least_s > limits.train_time_s:
        bound = f"training needs at least {least_s:.3g} s"
    if limits.train_memory_bytes and least_bytes > limits.train_memory_bytes:
        bound = f"training needs at least {least_bytes:.3g} B"
    if bound is None:
        return None
    return TrainTrial(
        number=number,
        recipe=recipe,
        state="skipped",
        bound=bound,
        why=why,
        constraints={"train_time": 1.0},
    )


def rungs_of(epochs: int) -> tuple[int, ...]:
    """Epochs at which halving decides, the last being the horizon."""
    steps = sorted({max(1, epochs // _ETA**i) for i in (2, 1, 0)})
    return tuple(steps)


def _timeout(run: Run, epochs: int) -> float:
    return min(3 * _whole_s(run, epochs) + 15, max(60.0, run.left_s))


def _whole_s(run: Run, epochs: int) -> float:
    """Seconds of a training at the slowest split's speed."""
    rates = [s.samples_per_s for s in run.survey.splits if s.samples_per_s]
    return epochs * run.survey.task.train_rows / min(rates) if rates else run.effort.time_s


def signed_quality(run: Run, quality: float) -> float:
    """Higher is better."""
    return quality if run.survey.task.higher_is_better else -quality


def _objective(run: Run, trial: TrainTrial) -> float | None:
    if trial.quality is None:
        return None
    loss = trial.values[-1] if trial.values else 0.0
    # the loss breaks ties between equal accuracies; tanh keeps it from ever outweighing one
    return -signed_quality(run, trial.quality) + 1e-3 * math.tanh(loss)


def best(run: Run, trials: Sequence[TrainTrial]) -> TrainTrial | None:
    """The fully trained trial of highest quality among those within every budget; among none,
    the least violating one.
    """
    done = [t for t in trials if t.state == "complete" and t.quality is not None]
    if not done:
        return None
    return min(done, key=lambda t: (_violation(t), _objective(run, t)))


def _violation(trial: TrainTrial) -> float:
    return sum(max(0.0, v) for v in trial.constraints.values())


def one_epoch(run: Run) -> tuple[float, float]:
    """Train the baseline recipe for one epoch, to `WEIGHTS`; seconds of one evaluation and of
    one epoch.
    """
    recipe = fitting(run, recipes.baseline(run.survey))
    job = jobs.Train(
        task=run.task(recipe),
        recipe=recipe,
        epochs=1,
        rungs=(1,),
        seed=run.effort.seed,
        weights_out=WEIGHTS,
        device=run.effort.device,
    )
    result = must(run.bridge, job, 1800.0)
    assert isinstance(result.answer, jobs.Trained)
    done = result.answer
    return max(0.0, result.work_s - done.startup_s - done.train_s), done.train_s


# -- 3: final training ---------------------------------------------------------------------


def final(run: Run, recipe: Recipe, epochs: int) -> Execution:
    """Train the winner in full, metered, to `WEIGHTS`.

    Raises:
        ContractError: it fails (it did not in the search).
    """
    job = jobs.Train(
        task=run.task(recipe),
        recipe=recipe,
        epochs=epochs,
        rungs=(epochs,),
        seed=run.effort.seed,
        step_losses=50,
        weights_out=WEIGHTS,
        meter=run.meter,
        device=run.effort.device,
    )
    done = must(run.bridge, job, max(600.0, 3 * _whole_s(run, epochs) + 60)).answer
    assert isinstance(done, jobs.Trained)
    return Execution(
        train_s=done.train_s,
        train_energy_j=done.energy.total_j if done.energy else None,
        train_energy_label=done.energy.label if done.energy else None,
        train_memory_bytes=done.peak_memory_bytes,
        samples_per_s=done.samples_per_s,
        train_losses=done.train_losses,
        step_losses=done.step_losses,
        quality_select=done.qualities[-1] if done.qualities else None,
    )


def nothing_trained(trials: Sequence[TrainTrial]) -> ContractError:
    """No recipe could be trained: the failures, by kind."""
    failures: list[Failure] = [t.failure for t in trials if t.failure is not None]
    lines = "\n".join(dict.fromkeys(f"  {f.kind}: {f.message}" for f in failures))
    return ContractError(
        f"no recipe could be trained; each of {len(trials)} tried failed:\n{lines}"
    )
