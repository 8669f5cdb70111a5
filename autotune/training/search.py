"""The train search: the recipe, the batch size and the layout, under training budgets.

1. *Hardware*: throughput and memory by batch, precision and layout are measured (`splitting`).
2. *Search*: constrained TPE over recipes; successive halving on quality, or on the validation
   loss where quality is no rate, among trials of one schedule, in which a promoted trial goes
   on from its checkpoint (`halving`).
   The user's recipe and the default (Adam 1e-3, batch 32) are always trained to the end.
3. *Finalists* are repeated with other seeds (`finalists`).

The final training is `finishing`'s.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from autotune.context import RunContext
from autotune.errors import ContractError
from autotune.records.plan import Recipe, Value
from autotune.records.report import Failure, TrainTrial
from autotune.search import space, warm_start
from autotune.search.halving import Halving
from autotune.search.space import Space
from autotune.search.study import Initial, MixedStudy, Proposal, Study
from autotune.search.warm_start import WarmStart
from autotune.training import lengths, search_space, seed_repeats, target_quality, throughput, width
from autotune.training import trial as training_trial
from autotune.training.trial import TrainState

_MOST_REPEATS = 30
_FEW_EPOCHS = 3
_MOST_OF_IT = 0.8
"""Of a trial that must fit to be begun: what is not trained to its end cannot win."""
_BASELINE, _DEFAULT = "the baseline recipe", "the default recipe"


def fitting(run: RunContext, recipe: Recipe) -> Recipe:
    """The recipe, its layout replaced where this machine does not have it, without a power limit
    and clock where none is allowed, and not compiled where that cannot be or does not pay.
    """
    if not run.effort.allow_power_limit:
        recipe = msgspec.structs.replace(recipe, power_limit_w=None, clock_hz=None)
    refused = {o.name for o in run.survey.options if o.kind == "step" and not o.available}
    if "compile" in refused:
        recipe = msgspec.structs.replace(recipe, compile=False)
    legal = search_space.layouts(run.survey.options, run.profile, run.effort)
    if (recipe.parallel, recipe.ranks, recipe.threads) in legal:
        return recipe
    parallel, ranks, threads = legal[0]
    return msgspec.structs.replace(recipe, parallel=parallel, ranks=ranks, threads=threads)


# -- 2: search -----------------------------------------------------------------------------


class _Hand(NamedTuple):
    """What a search works with; ``values`` are those of each trial inside the space."""

    outcome: TrainState
    study: MixedStudy
    halving: Halving
    values: dict[int, dict[str, Value]]
    began_s: float
    until_s: float


def search(outcome: TrainState, until_s: float, earlier: WarmStart | None = None) -> None:
    """Try recipes, those of an ``earlier`` run first, until the run's clock reads ``until_s`` or
    the trials are used up.
    """
    run = outcome.run
    study = Study(
        search_space.train_space(run.survey, run.effort),
        seed=run.effort.seed,
        constraints=("train_energy", "train_memory", "train_time"),
        journal=run.journal,
    )
    default = search_space.baseline(run.survey)
    usual = search_space.seeds(study.space, default, times=_times(outcome))
    first = _initial(run, study.space, earlier, usual)
    mixed = MixedStudy(study, first, blind=earlier is not None)
    hand = _Hand(outcome, mixed, Halving(outcome.looks), {}, run.bridge.now(), until_s)
    _pinned(hand, default, _BASELINE)
    plain = Recipe(params=default.params)
    if msgspec.structs.replace(default, threads=1) != plain:
        _pinned(hand, plain, _DEFAULT)
    if outcome.shorten():
        hand = hand._replace(halving=Halving(outcome.looks))
    _propose(hand)
    seed_repeats.repeat(outcome, until_s)
    outcome.messages += width.said(run, outcome.winner, outcome.trials)
    if outcome.winner is not None:
        outcome.messages += target_quality.said(run, outcome.winner, outcome.baseline)


def _initial(
    run: RunContext, space: Space, earlier: WarmStart | None, usual: Sequence[Initial]
) -> list[Initial]:
    """What is tried first: an earlier run's recipes, as this space has them, then the usual."""
    if earlier is None:
        return list(usual)
    near = [search_space.values_near(recipe, space) for recipe in earlier.recipes]
    given = [values for i, values in enumerate(near) if values and values not in near[:i]]
    run.listener.note(
        f"Starts from {len(given)} recipes of {earlier.folder} ({earlier.model}), trained anew; "
        "every third of the sampler's trials has not seen them."
    )
    known: list[Initial] = [(values, warm_start.WHY) for values in given]
    return known + [(values, why) for values, why in usual if values not in given]


def _times(outcome: TrainState) -> int:
    """The seeds' batch for one of the default's."""
    return 2 if outcome.epochs < _FEW_EPOCHS else 4


def _propose(hand: _Hand) -> None:
    """Promote what deserves it, else try what the sampler proposes."""
    outcome = hand.outcome
    run = outcome.run
    legal = search_space.layouts(run.survey.options, run.profile, run.effort)
    seen = {space.canonical(t.recipe) for t in outcome.trials}
    repeats, limit = 0, run.effort.train_trials or 10_000
    first = lengths.shares_of(run, outcome.reach)[0]
    while _time_left(hand, first / 2) and repeats < _MOST_REPEATS:
        promoted = _overdue(hand)
        to_the_end = promoted is not None
        promoted = _promotable(hand) if promoted is None else promoted
        full = len(outcome.trials) >= limit or not _time_left(hand, _MOST_OF_IT)
        if promoted is None and full:
            break
        if promoted is not None:
            _promote(hand, promoted, to_the_end=to_the_end)
            continue
        proposal = hand.study.ask()
        recipe = _recipe(hand, proposal, legal)
        if space.canonical(recipe) in seen:
            repeats += 1
            hand.study.abandon(proposal.number)
            continue
        seen.add(space.canonical(recipe))
        repeats = 0
        _try(hand, recipe, proposal)


def _time_left(hand: _Hand, share: float) -> bool:
    """Whether there is time for a ``share`` of a whole trial, beside that of the finalists."""
    outcome = hand.outcome
    reserve_s = seed_repeats.reserve_s(outcome, _length(hand))
    whole_s = outcome.expected_s(outcome.trials[0].recipe)
    return outcome.run.bridge.now() + share * whole_s < hand.until_s - reserve_s


def _promotable(hand: _Hand) -> int | None:
    """A paused trial that deserves to go on and has the time to reach its next rung."""
    while (number := hand.halving.promotable()) is not None:
        trial = hand.outcome.trials[number]
        if not _too_slow(hand, trial, (trial.train_s or 0.0) / trial.rungs[-1]):
            rung = hand.halving.rung_of(number) or 0
            return number if _affordable(hand, trial, rung) else None
        hand.halving.forget(number)
    return None


def _too_slow(hand: _Hand, trial: TrainTrial, epoch_s: float) -> bool:
    """Whether the trial, where the horizon follows from time, would take many times its own."""
    outcome = hand.outcome
    whole_s = outcome.expected_s(trial.recipe)
    reach = outcome.length(trial.recipe).reach
    return outcome.timed and 0 < training_trial.SLOW * whole_s < epoch_s * reach


def _startup_s(hand: _Hand) -> float:
    """What a job takes beside its training, by the baseline's: no part of a trial's pace."""
    base = hand.outcome.baseline
    return 0.0 if base is None else max(0.0, base.wall_s - (base.train_s or base.wall_s))


def _affordable(hand: _Hand, trial: TrainTrial, rung: int, epoch_s: float = 0.0) -> bool:
    """Whether a trial can reach the rung after ``rung`` in time.

    ``epoch_s``: of its epochs under way.  What was seen of a trial counts where it is slower than
    expected: an update rule may cost many times the model's own work.
    """
    outcome = hand.outcome
    rungs = outcome.length(trial.recipe).rungs
    goal = rungs[min(rung + 1, len(rungs) - 1)]
    before = trial.rungs[-1] if trial.rungs else 0.0
    seen_s = (trial.train_s or 0.0) / before if before else 0.0
    needed_s = (goal - before) / rungs[-1] * outcome.expected_s(trial.recipe)
    needed_s = max(needed_s, (goal - before) * seen_s, (goal - rungs[rung]) * epoch_s)
    return outcome.run.bridge.now() + needed_s <= hand.until_s


def _overdue(hand: _Hand) -> int | None:
    """The most promising paused trial, when there is just time to train it to the end and no
    challenger of the baseline has come so far.
    """
    outcome, paused = hand.outcome, hand.halving.paused()
    ended = [t for t in outcome.trials if t.state == "complete" and _proposed(t)]
    if ended or not paused:
        return None
    trial = outcome.trials[paused[0]]
    needed = trial.wall_s * (outcome.length(trial.recipe).reach / trial.rungs[-1] - 1)
    left = hand.until_s - outcome.run.bridge.now()
    return trial.number if left < 1.5 * needed or left < 0.3 * _length(hand) else None


def _length(hand: _Hand) -> float:
    return hand.until_s - hand.began_s


def _proposed(trial: TrainTrial) -> bool:
    return trial.why not in (_BASELINE, _DEFAULT)


def _promote(hand: _Hand, number: int, *, to_the_end: bool) -> None:
    """A paused trial goes on from its checkpoint."""
    before = hand.outcome.trials[number]
    hand.halving.resume(number, hand.halving.rung_of(number) or 0)
    trial = training_trial.go_on(hand.outcome, before, _asks(hand, before, to_the_end=to_the_end))
    values = hand.values.get(number)
    if values is not None:
        _tell(hand, hand.study.add(values, trial.why), trial)
    _keep(hand, trial)


def _try(hand: _Hand, recipe: Recipe, proposal: Proposal) -> None:
    """A proposed recipe: not trained where a bound rules it out, else until it pauses."""
    outcome = hand.outcome
    new = training_trial.fresh(outcome, recipe, proposal.why)
    number, epochs = new.number, outcome.final(new)
    trial = training_trial.skipped(outcome.run, recipe, epochs, number, proposal.why)
    if trial is None:
        trial = training_trial.go_on(outcome, new, _asks(hand, new))
    hand.values[number] = dict(proposal.values)
    _tell(hand, proposal.number, trial)
    _keep(hand, trial)


def _asks(hand: _Hand, trial: TrainTrial, *, to_the_end: bool = False) -> training_trial.GoOn:
    """What a job that trains ``trial`` is answered at each rung."""
    bridge, rungs = hand.outcome.run.bridge, hand.outcome.length(trial.recipe).rungs
    began_s, before = bridge.now(), trial.rungs[-1] if trial.rungs else 0.0
    likeliest = not any(_proposed(t) for t in hand.outcome.trials[: trial.number])

    def on_report(step: float, value: float) -> bool:
        if not math.isfinite(value):
            return True  # the job is about to say so itself
        if step not in rungs:
            return True  # a look for a target quality
        rung = rungs.index(step)
        go = hand.halving.report(trial.number, rung, value, _peers(hand.outcome.run, trial.recipe))
        if step == rungs[-1] or to_the_end:
            hand.halving.resume(trial.number, rung)
            return True
        # an earlier search has compared it, up to its end; or the first seed, which stands alone
        # among those of its schedule: that something good is there early
        if trial.why == warm_start.WHY or likeliest:
            hand.halving.resume(trial.number, rung)
            go = True
        spent_s = max(0.0, bridge.now() - began_s - _startup_s(hand))
        epoch_s = spent_s / (step - before) if step > before else 0.0
        slow = _too_slow(hand, trial, epoch_s)
        if go and (slow or not _affordable(hand, trial, rung, epoch_s)):
            hand.halving.pause(trial.number, rung)
            return False
        return go

    return on_report


def _peers(run: RunContext, recipe: Recipe) -> str:
    """Trials are compared among those of one schedule and, where widths are searched, of one width:
    narrow models learn less, and are to be there at the end.
    """
    searched = width.searched(run.survey, run.effort)
    return f"{recipe.schedule}, width {width.of(recipe):g}" if searched else recipe.schedule


def _tell(hand: _Hand, number: int, trial: TrainTrial) -> None:
    for step, value in enumerate(trial.values, start=1):
        hand.study.report(number, step, value)
    hand.study.tell(
        number,
        training_trial.objective(hand.outcome.run, trial),
        trial.constraints,
        pruned=trial.state == "pruned",
    )


def _pinned(hand: _Hand, recipe: Recipe, why: str) -> None:
    """Train a recipe to the end whatever the others do; tell the study where it lies inside.

    Its layout and the memory format, which change nothing that is learnt, are the fastest unless
    the user's recipe has a layout.
    """
    run = hand.outcome.run
    recipe = fitting(run, recipe)
    if not {"parallel", "ranks", "threads"} & {*(run.survey.task.recipe or {})}:
        legal = search_space.layouts(run.survey.options, run.profile, run.effort)
        layout = search_space.fastest_layout(
            run.survey.layouts, recipe.batch_size, recipe.precision, legal
        )
        parallel, ranks, threads = layout
        recipe = msgspec.structs.replace(recipe, parallel=parallel, ranks=ranks, threads=threads)
    if throughput.channels_last(run.survey.layouts):
        recipe = msgspec.structs.replace(recipe, channels_last=True)
    new = training_trial.fresh(hand.outcome, recipe, why)
    trial = training_trial.go_on(hand.outcome, new, _asks(hand, new, to_the_end=True))
    values = search_space.values_of(recipe, hand.study.space)
    if values is not None:
        _tell(hand, hand.study.add(values, why), trial)
    _keep(hand, trial)


def _keep(hand: _Hand, trial: TrainTrial) -> None:
    outcome = hand.outcome
    run = outcome.run
    rung = hand.halving.rung_of(trial.number)
    if trial.state != "pruned":
        hand.halving.forget(trial.number)
    elif rung is not None:  # a replayed report knows no time: that it paused there tells
        hand.halving.pause(trial.number, rung)
    outcome.trials[trial.number : trial.number + 1] = [trial]
    training_trial.keep_the_best(outcome, hand.halving.paused())
    winner = outcome.winner
    text = f"{winner.recipe.optimizer} lr {winner.recipe.lr:.2g}" if winner else "none yet"
    run.listener.trial(trial, text, hand.until_s - run.bridge.now())
    run.on_progress()


def _recipe(hand: _Hand, proposal: Proposal, legal: tuple[tuple[str, int, int], ...]) -> Recipe:
    batch = int(proposal.values["batch_size"])
    precision = str(proposal.values.get("precision", "fp32"))
    layouts = hand.outcome.run.survey.layouts
    layout = search_space.fastest_layout(layouts, batch, precision, legal)
    made = search_space.recipe(proposal.values, layout, hand.study.space)
    watts, clock_hz = throughput.gpu_setting(layouts)
    return msgspec.structs.replace(
        made,
        workers=throughput.workers(layouts),
        channels_last=throughput.channels_last(layouts),
        power_limit_w=watts,
        clock_hz=clock_hz,
    )


def nothing_trained(tried: Sequence[TrainTrial]) -> ContractError:
    """No recipe could be trained: the failures, by kind."""
    failures: list[Failure] = [t.failure for t in tried if t.failure is not None]
    lines = "\n".join(dict.fromkeys(f"  {f.kind}: {f.message}" for f in failures))
    return ContractError(f"no recipe could be trained; each of {len(tried)} tried failed:\n{lines}")
