"""The train search: the recipe, the batch size and the parallel layout, under training budgets.

1. *Hardware*: throughput and memory by batch, precision and layout are measured beforehand
   (`throughput_stage`).
2. *Search*: constrained TPE over recipes; successive halving on quality, or on the validation
   loss where quality is no rate, among trials of one schedule, in which a promoted trial resumes
   from its checkpoint (`search.halving`).
   The user's recipe and the default (Adam 1e-3, batch 32) are always trained to the end.
3. *Finalists* are repeated with other seeds (`seed_repeats`).

The final training is `final`'s.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from autotune.bridge import OnReport
from autotune.context import RunContext
from autotune.errors import ContractError
from autotune.records.plan import Recipe, Value
from autotune.records.report import Failure, TrainTrial
from autotune.search import Initial, MixedStudy, Proposal, Study, space, warm_start
from autotune.search.halving import Halving
from autotune.search.space import Space
from autotune.search.warm_start import WarmStart
from autotune.training import lengths, search_space, seed_repeats, target_quality, throughput, width
from autotune.training import trial as training_trial
from autotune.training.trial import TrainState

_MOST_REPEATS = 30
"""Proposals in a row that were tried before, after which the space counts as exhausted."""
_FEW_EPOCHS = 3
_MOST_OF_IT = 0.8
"""Share of a trial that must fit to be begun: what is not trained to its end cannot win."""
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


def search(state: TrainState, until_s: float, earlier: WarmStart | None = None) -> None:
    """Try recipes, those of an ``earlier`` run first, until the run's clock reads ``until_s`` or
    the trials are used up; then repeat the best with other seeds.
    """
    run = state.run
    study = Study(
        search_space.train_space(run.survey, run.effort),
        seed=run.effort.seed,
        constraints=("train_energy", "train_memory", "train_time"),
        journal=run.journal,
    )
    default = search_space.baseline(run.survey)
    times = 2 if state.epochs < _FEW_EPOCHS else 4
    usual = search_space.initial(study.space, default, times=times)
    first = _initial(run, study.space, earlier, usual)
    mixed = MixedStudy(study, first, blind=earlier is not None)
    searched = _TrainSearch(state, mixed, Halving(state.rung_count), {}, run.bridge.now(), until_s)
    searched.train_pinned(default, _BASELINE)
    plain = Recipe(params=default.params)
    if msgspec.structs.replace(default, threads=1) != plain:
        searched.train_pinned(plain, _DEFAULT)
    if state.shorten():
        searched = searched._replace(halving=Halving(state.rung_count))
    searched.propose()
    seed_repeats.repeat(state, until_s)
    state.messages += width.report_lines(run, state.winner, state.trials)
    if state.winner is not None:
        state.messages += target_quality.report_lines(run, state.winner, state.baseline)


def _initial(
    run: RunContext, space: Space, earlier: WarmStart | None, usual: Sequence[Initial]
) -> list[Initial]:
    """What is tried first: an earlier run's recipes, as this space has them, then the usual."""
    if earlier is None:
        return list(usual)
    known = (search_space.values_near(recipe, space) for recipe in earlier.recipes)
    first, note = earlier.first(known, usual, "recipes, trained anew")
    run.listener.note(note)
    return first


class _TrainSearch(NamedTuple):
    """One search under way; ``values`` are those of each trial inside the space, by number."""

    state: TrainState
    study: MixedStudy
    halving: Halving
    values: dict[int, dict[str, Value]]
    began_s: float
    until_s: float

    @property
    def run(self) -> RunContext:
        return self.state.run

    def train_pinned(self, recipe: Recipe, why: str) -> None:
        """Train a recipe to the end whatever the others do; the study sees it if it lies inside.

        Its layout and memory format, which change nothing that is learnt, are the fastest unless
        the user's recipe has a layout.
        """
        recipe = fitting(self.run, recipe)
        if not {"parallel", "ranks", "threads"} & {*(self.run.survey.task.recipe or {})}:
            recipe = search_space.on_fastest_layout(self.run, recipe)
        if throughput.channels_last(self.run.survey.layouts):
            recipe = msgspec.structs.replace(recipe, channels_last=True)
        new = training_trial.new_trial(self.state, recipe, why)
        trial = training_trial.resume(self.state, new, self._on_report(new, to_the_end=True))
        values = search_space.values_of(recipe, self.study.space)
        if values is not None:
            self._record(self.study.add(values, why), trial)
        self._keep(trial)

    def propose(self) -> None:
        """Promote what deserves it, else try what the sampler proposes."""
        state, effort = self.state, self.run.effort
        seen = {space.canonical(t.recipe) for t in state.trials}
        repeats, limit = 0, effort.train_trials or 10_000
        first = lengths.shares_of(self.run, state.reach)[0]
        while self._time_left(first / 2) and repeats < _MOST_REPEATS:
            promoted = self._overdue()
            to_the_end = promoted is not None
            promoted = self._promotable() if promoted is None else promoted
            full = len(state.trials) >= limit or not self._time_left(_MOST_OF_IT)
            if promoted is None and full:
                break
            if promoted is not None:
                self._promote(promoted, to_the_end=to_the_end)
                continue
            proposal = self.study.ask()
            recipe = self._recipe(proposal)
            if space.canonical(recipe) in seen:
                repeats += 1
                self.study.abandon(proposal.number)
                continue
            seen.add(space.canonical(recipe))
            repeats = 0
            self._try(recipe, proposal)

    # -- what there is time for ------------------------------------------------------------

    def _time_left(self, share: float) -> bool:
        """Whether there is time for a ``share`` of a whole trial, beside that of the finalists."""
        reserve_s = seed_repeats.reserve_s(self.state, self.until_s - self.began_s)
        whole_s = self.state.expected_s(self.state.trials[0].recipe)
        return self.run.bridge.now() + share * whole_s < self.until_s - reserve_s

    def _promotable(self) -> int | None:
        """A paused trial that deserves to go on and has the time to reach its next rung."""
        while (number := self.halving.promotable()) is not None:
            trial = self.state.trials[number]
            if not self._too_slow(trial, (trial.train_s or 0.0) / trial.rungs[-1]):
                rung = self.halving.rung_of(number) or 0
                return number if self._affordable(trial, rung) else None
            self.halving.forget(number)
        return None

    def _too_slow(self, trial: TrainTrial, epoch_s: float) -> bool:
        """Whether the trial, where the horizon follows from time, would take many times its own."""
        whole_s = self.state.expected_s(trial.recipe)
        reach = self.state.length(trial.recipe).reach
        return self.state.timed and 0 < training_trial.TOO_SLOW * whole_s < epoch_s * reach

    def _startup_s(self) -> float:
        """What a job takes beside its training, by the baseline's: no part of a trial's pace."""
        base = self.state.baseline
        return 0.0 if base is None else max(0.0, base.wall_s - (base.train_s or base.wall_s))

    def _affordable(self, trial: TrainTrial, rung: int, epoch_s: float = 0.0) -> bool:
        """Whether a trial can reach the rung after ``rung`` in time.

        ``epoch_s``: of its epochs under way.  What was seen of a trial counts where it is slower
        than expected: an optimizer may cost many times the model's own work.
        """
        rungs = self.state.length(trial.recipe).rungs
        goal = rungs[min(rung + 1, len(rungs) - 1)]
        before = trial.rungs[-1] if trial.rungs else 0.0
        seen_s = (trial.train_s or 0.0) / before if before else 0.0
        needed_s = (goal - before) / rungs[-1] * self.state.expected_s(trial.recipe)
        needed_s = max(needed_s, (goal - before) * seen_s, (goal - rungs[rung]) * epoch_s)
        return self.run.bridge.now() + needed_s <= self.until_s

    def _overdue(self) -> int | None:
        """The most promising paused trial, when there is just time to train it to the end and no
        challenger of the baseline has come so far.
        """
        paused = self.halving.paused()
        ended = [t for t in self.state.trials if t.state == "complete" and _proposed(t)]
        if ended or not paused:
            return None
        trial = self.state.trials[paused[0]]
        needed_s = trial.wall_s * (self.state.length(trial.recipe).reach / trial.rungs[-1] - 1)
        left_s = self.until_s - self.run.bridge.now()
        last_moment = left_s < 1.5 * needed_s or left_s < 0.3 * (self.until_s - self.began_s)
        return trial.number if last_moment else None

    # -- training --------------------------------------------------------------------------

    def _promote(self, number: int, *, to_the_end: bool) -> None:
        """Resume a paused trial from its checkpoint."""
        before = self.state.trials[number]
        self.halving.resume(number, self.halving.rung_of(number) or 0)
        on_report = self._on_report(before, to_the_end=to_the_end)
        trial = training_trial.resume(self.state, before, on_report)
        values = self.values.get(number)
        if values is not None:
            self._record(self.study.add(values, trial.why), trial)
        self._keep(trial)

    def _try(self, recipe: Recipe, proposal: Proposal) -> None:
        """Train a proposed recipe until it pauses."""
        new = training_trial.new_trial(self.state, recipe, proposal.why)
        trial = training_trial.resume(self.state, new, self._on_report(new))
        self.values[new.number] = dict(proposal.values)
        self._record(proposal.number, trial)
        self._keep(trial)

    def _on_report(self, trial: TrainTrial, *, to_the_end: bool = False) -> OnReport:
        """Decides at each rung whether the job that trains ``trial`` goes on."""
        bridge, rungs = self.run.bridge, self.state.length(trial.recipe).rungs
        began_s, before = bridge.now(), trial.rungs[-1] if trial.rungs else 0.0
        first_of_all = not any(_proposed(t) for t in self.state.trials[: trial.number])

        def on_report(step: float, value: float) -> bool:
            if not math.isfinite(value):
                return True  # the job is about to fail by itself
            if step not in rungs:
                return True  # an evaluation between rungs
            rung = rungs.index(step)
            go = self.halving.report(trial.number, rung, value, _peers(self.run, trial.recipe))
            if step == rungs[-1] or to_the_end:
                self.halving.resume(trial.number, rung)
                return True
            # an earlier run has compared it, up to its end; or it is the first, which stands alone
            # among those of its schedule: so that something good is there early
            if trial.why == warm_start.WHY or first_of_all:
                self.halving.resume(trial.number, rung)
                go = True
            spent_s = max(0.0, bridge.now() - began_s - self._startup_s())
            epoch_s = spent_s / (step - before) if step > before else 0.0
            slow = self._too_slow(trial, epoch_s)
            if go and (slow or not self._affordable(trial, rung, epoch_s)):
                self.halving.pause(trial.number, rung)
                return False
            return go

        return on_report

    def _record(self, number: int, trial: TrainTrial) -> None:
        """Report a trial to the study."""
        for step, value in enumerate(trial.values, start=1):
            self.study.report(number, step, value)
        objective = training_trial.objective(self.run, trial)
        self.study.tell(number, objective, trial.constraints, pruned=trial.state == "pruned")

    def _keep(self, trial: TrainTrial) -> None:
        rung = self.halving.rung_of(trial.number)
        if trial.state != "pruned":
            self.halving.forget(trial.number)
        elif rung is not None:  # a replayed report knows no time: it shows only that it paused
            self.halving.pause(trial.number, rung)
        self.state.trials[trial.number : trial.number + 1] = [trial]
        training_trial.discard_states(self.state, self.halving.paused())
        winner = self.state.winner
        text = f"{winner.recipe.optimizer} lr {winner.recipe.lr:.2g}" if winner else "none yet"
        self.run.listener.trial(trial, text, self.until_s - self.run.bridge.now())
        self.run.on_progress()

    def _recipe(self, proposal: Proposal) -> Recipe:
        batch = int(proposal.values["batch_size"])
        precision = str(proposal.values.get("precision", "fp32"))
        rows = self.run.survey.layouts
        legal = search_space.layouts(self.run.survey.options, self.run.profile, self.run.effort)
        layout = search_space.fastest_layout(rows, batch, precision, legal)
        made = search_space.recipe(proposal.values, layout, self.study.space)
        watts, clock_hz = throughput.gpu_setting(rows)
        return msgspec.structs.replace(
            made,
            workers=throughput.workers(rows),
            channels_last=throughput.channels_last(rows),
            power_limit_w=watts,
            clock_hz=clock_hz,
        )


def _proposed(trial: TrainTrial) -> bool:
    return trial.why not in (_BASELINE, _DEFAULT)


def _peers(run: RunContext, recipe: Recipe) -> str:
    """Trials are compared among those of one schedule and, where widths are searched, of one width:
    narrow models learn less, and are to be there at the end.
    """
    searched = width.searched(run.survey, run.effort)
    return f"{recipe.schedule}, width {width.of(recipe):g}" if searched else recipe.schedule


def nothing_trained(tried: Sequence[TrainTrial]) -> ContractError:
    """No recipe could be trained: the failures, by kind."""
    failures: list[Failure] = [t.failure for t in tried if t.failure is not None]
    lines = "\n".join(dict.fromkeys(f"  {f.kind}: {f.message}" for f in failures))
    return ContractError(f"no recipe could be trained; each of {len(tried)} tried failed:\n{lines}")
