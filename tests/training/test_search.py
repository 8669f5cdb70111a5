"""The train search on a simulated trainer: what is resumed, repeated, cut and chosen."""

import contextlib
import math
import random
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from autotune.bridge.protocol import Bridge
from autotune.bridge.recording import Recorder, ReplayBridge, load_recording
from autotune.records import job as jobs
from autotune.records.budget import Budget
from autotune.records.hardware import Gpu
from autotune.records.measurement import EnergySource
from autotune.records.plan import Recipe
from autotune.records.report import Failure, TrainTrial
from autotune.records.task import Layout
from autotune.training import final, search, seed_repeats, target_quality
from autotune.training import trial as training_trial
from autotune.training.trial import TrainState, best
from tests.support import trainer as simulated
from tests.support.trainer import Trainer


def layout(rate: float, batch_size: int = 32) -> Layout:
    return Layout(
        parallel="single",
        ranks=1,
        threads=1,
        batch_size=batch_size,
        precision="fp32",
        samples_per_s=rate,
    )


def searched(
    trainer: Trainer, *, epochs: int = 9, reach: int = 9, until_s: float = 300.0, **limits: float
) -> TrainState:
    outcome = TrainState(simulated.run(trainer, budget=Budget(**limits)), epochs, reach)
    search.search(outcome, until_s)
    return outcome


def test_a_promoted_trial_goes_on_from_its_checkpoint() -> None:
    trainer = Trainer()
    outcome = searched(trainer, until_s=150.0)  # so few trials that all states are kept
    train = [job for job in trainer.asked if isinstance(job, jobs.Train)]
    again = Counter(job.checkpoint for job in train if job.checkpoint)
    assert max(again.values()) > 1
    # what was trained is what the trials reached: nothing was trained twice
    reached = sum(t.rungs[-1] for t in outcome.trials if t.rungs)
    repeated = sum(9 * len(t.repeats) for t in outcome.trials)
    assert trainer.trained == pytest.approx(reached + repeated)
    for trial in outcome.trials:
        assert trial.train_s == pytest.approx(trial.rungs[-1])
        assert len(trial.rungs) == len(trial.values)
        assert list(trial.rungs) == sorted(set(trial.rungs))


def test_most_trials_are_paused_early_and_the_best_is_found() -> None:
    outcome = searched(Trainer())
    states = Counter(t.state for t in outcome.trials)
    assert states["pruned"] > states["complete"] >= 2
    assert outcome.winner is not None
    assert outcome.winner.recipe.optimizer == "adamw"
    assert abs(math.log10(outcome.winner.recipe.lr / 3e-3)) < 0.3
    assert outcome.baseline is not None
    assert outcome.baseline.state == "complete"


def test_the_same_results_give_the_same_search() -> None:
    one, again = (searched(Trainer()) for _ in range(2))
    assert one.trials == again.trials


def test_a_challenger_is_trained_to_the_end_however_short_the_time() -> None:
    outcome = searched(Trainer(), until_s=24.0)
    assert sum(t.state == "complete" for t in outcome.trials) >= 2


def test_a_seed_best_by_chance_does_not_win() -> None:
    def curve(recipe: Recipe, epochs: float, seed: int) -> tuple[float, float]:
        best_by_chance = recipe.optimizer == "nesterov" and seed == 0
        good = 0.9 if recipe.optimizer == "adamw" else 0.7
        return 1.0 / (1 + epochs), (0.99 if best_by_chance else good) - 1e-3 * abs(
            math.log(recipe.lr / 3e-3)
        )

    outcome = searched(Trainer(curve=curve))
    best_by_chance = max(outcome.trials, key=lambda t: t.quality or 0.0)
    assert best_by_chance.recipe.optimizer == "nesterov"
    assert outcome.winner is not None
    assert outcome.winner.recipe.optimizer == "adamw"
    assert len(outcome.winner.repeats) >= 2
    assert outcome.winner.quality_interval is not None
    assert "over" in outcome.messages[0]


def test_without_time_for_two_rounds_one_seed_decides_and_is_said_to() -> None:
    outcome = searched(Trainer(), until_s=24.0)
    assert all(not t.repeats for t in outcome.trials)
    assert "one seed" in outcome.messages[0]
    assert outcome.winner is not None


def test_one_with_three_seeds_wins_over_one_with_less() -> None:
    made = [
        TrainTrial(number=n, recipe=Recipe(), state="complete", quality=q, repeats=r)
        for n, (q, r) in enumerate([(0.99, ()), (0.90, (0.88, 0.89)), (0.91, (0.85, 0.86))])
    ]
    winner = best(simulated.run(Trainer()), made)
    assert winner is not None
    assert winner.number == 1


def test_the_interval_needs_three_seeds() -> None:
    assert seed_repeats.interval(0.9, (0.91,)) is None
    found = seed_repeats.interval(0.90, (0.91, 0.92))
    assert found is not None
    assert found[0] == pytest.approx(0.91 - 4.3027 * 0.01 / math.sqrt(3), abs=1e-5)


def test_the_interval_of_a_rate_stays_between_0_and_1() -> None:
    wide = seed_repeats.interval(0.99, (0.95, 1.0))
    found = seed_repeats.interval(0.99, (0.95, 1.0), rate=True)
    assert wide is not None
    assert wide[1] > 1.0
    assert found == (wide[0], 1.0)


def test_a_finalist_that_fails_with_another_seed_is_none() -> None:
    def fail(job: jobs.Train) -> Failure | None:
        bad = job.seed > 0 and abs(math.log10(job.recipe.lr / 3e-3)) < 1e-6
        return Failure(kind="nan", message="the loss is nan") if bad else None

    outcome = searched(Trainer(fail=fail))
    failed = [t for t in outcome.trials if t.failure is not None]
    assert failed
    assert "with seed 1" in (failed[0].failure.message if failed[0].failure else "")
    assert outcome.winner not in failed


def test_out_of_memory_halves_the_batch_once() -> None:
    def fail(job: jobs.Train) -> Failure | None:
        over = job.recipe.batch_size / job.recipe.accumulate > 32
        return Failure(kind="oom", message="no memory") if over else None

    trainer = Trainer(fail=fail)
    outcome = searched(trainer)
    by_batch = {(t.recipe.batch_size, t.recipe.accumulate): t.state for t in outcome.trials}
    halved = [state for (batch, parts), state in by_batch.items() if (batch, parts) == (64, 1)]
    assert "failed" not in halved
    assert any(parts == 2 for _, parts in by_batch)
    tried = [job for job in trainer.asked if isinstance(job, jobs.Train)]
    assert all(job.recipe.accumulate <= 2 for job in tried)


def test_the_final_training_goes_on_from_the_winners_state() -> None:
    trainer = Trainer()
    outcome = searched(trainer, epochs=20, reach=9)
    winner = outcome.winner
    assert winner is not None
    before = trainer.trained
    execution = final.final(outcome.run, winner.recipe, 20, winner)
    assert trainer.trained - before == pytest.approx(11)
    assert execution.train_s == pytest.approx(20)


def test_states_that_nobody_needs_are_deleted() -> None:
    trainer = Trainer()
    outcome = searched(trainer)
    assert len(outcome.trials) > 15
    assert len(trainer.states) <= 14
    assert outcome.winner is not None
    assert training_trial.checkpoint_of(outcome.winner.number) in trainer.states


def test_a_dear_epoch_has_rungs_inside() -> None:
    def rungs(rate: float, reach: int, **task: object) -> tuple[float, ...]:
        run = simulated.run(Trainer(), layouts=(layout(rate),), **{"validation_rows": 9, **task})
        return TrainState(run, reach, reach).length(Recipe()).rungs

    assert rungs(100.0, 3) == (0.333, 1.0, 3.0)  # 9 s an epoch
    assert rungs(100.0, 1) == (0.111, 0.333, 1.0)
    assert rungs(3000.0, 3) == (1.0, 3.0)
    assert rungs(3000.0, 20) == (2.0, 6.0, 20.0)
    assert rungs(100.0, 3, own_train=True) == (1.0, 3.0)
    assert rungs(100.0, 3, validation_rows=450) == (1.0, 3.0)  # a look costs a sixth of an epoch


@pytest.mark.parametrize(("validation", "evaluation_s", "reach", "looks"), [
    (300, 0.0, 20, (2, 4, 6, 8, 11, 13, 15, 17, 20)),
    (300, 0.0, 4, (1, 2, 4)),
    (1350, 0.0, 20, (2, 5, 6, 10, 15, 20)),  # a look costs half an epoch
    (300, 99.0, 20, (2, 6, 20)),  # or, as was seen, many
])  # fmt: skip
def test_a_training_is_looked_at_some_nine_times(
    validation: int, evaluation_s: float, reach: int, looks: tuple[float, ...]
) -> None:
    run = simulated.run(Trainer(), layouts=(layout(3000.0),), validation_rows=validation)
    run.evaluation_s = evaluation_s
    assert TrainState(run, reach, reach).length(Recipe()).looks == looks


def test_where_time_is_short_trials_are_small_trainings_of_their_own() -> None:
    layouts = (layout(100.0), layout(200.0, batch_size=256))  # 9 s an epoch
    run = simulated.run(Trainer(), layouts=layouts, validation_rows=9)
    short = TrainState(run, 2, 0.5, timed=True)
    assert short.proxies
    assert short.length(Recipe())[:2] == (0.5, (0.056, 0.167, 0.5))
    assert short.length(Recipe(batch_size=256))[:2] == (1, (0.111, 0.333, 1.0))
    slower = TrainTrial(number=0, recipe=Recipe(), state="complete", epochs=0.5, samples_per_s=50.0)
    assert short.final_epochs(slower) == 1.41  # measured at half of the speed the second time
    assert short.final_epochs(slower, 9.0) == 2.12
    assert short.final_epochs(slower, -9.0) == 0.707
    assert short.final_epochs(slower, -90.0) == 0.707
    assert short.final_epochs(msgspec.structs.replace(slower, samples_per_s=None)) == 2
    assert TrainState(run, 2, 0.5).final_epochs(slower) == 2  # epochs that were asked for
    long = TrainState(run, 2, 2, timed=True)
    assert not long.proxies
    assert long.length(Recipe())[:2] == (2, (0.222, 0.667, 2.0))
    assert not TrainState(run, 20, 15).proxies
    wanted = simulated.run(Trainer(), layouts=layouts, budget=Budget(target_quality=0.9))
    assert not TrainState(wanted, 9, 1).proxies


def test_small_trainings_end_with_their_schedule_and_are_said() -> None:
    trainer = Trainer()
    outcome = searched(trainer, epochs=9, reach=2)
    assert {j.epochs for j in trainer.asked if isinstance(j, jobs.Train)} == {2}
    assert outcome.winner is not None
    final.last(outcome, outcome.winner)
    assert outcome.messages[-1].endswith("the final training started from scratch, for 9 epochs.")


def test_a_final_training_is_never_shorter_than_its_trial() -> None:
    run = simulated.run(Trainer(), layouts=(layout(900.0),))
    outcome = TrainState(run, 4, 2, timed=True)
    search.search(outcome, 60.0)
    winner = outcome.winner
    assert winner is not None
    done, epochs = final.last(outcome, winner, -60.0)  # the search took far too long
    assert epochs == winner.epochs
    assert done.train_s == winner.train_s
    assert outcome.messages[-1].endswith("the winner's trial is kept.")


def test_a_longer_training_that_is_no_better_gives_way_to_the_trial() -> None:
    def peak(recipe: Recipe, epochs: float, seed: int) -> tuple[float, float]:
        loss, quality = simulated.curve(recipe, min(epochs, 2.0), seed)
        return loss, quality - 0.1 * max(0.0, epochs - 2.0)

    outcome = searched(Trainer(curve=peak), epochs=9, reach=2)
    winner = outcome.winner
    assert winner is not None
    done, epochs = final.last(outcome, winner)
    assert epochs == winner.epochs == 2
    assert done.validation_quality == winner.quality
    assert "the trial's weights are kept" in outcome.messages[-1]
    better = searched(Trainer(), epochs=9, reach=2)
    assert better.winner is not None
    done, epochs = final.last(better, better.winner)
    assert epochs == 9
    assert done.validation_quality is not None
    assert better.winner.quality is not None
    assert done.validation_quality > better.winner.quality


def test_no_recipe_is_trained_for_longer_than_the_baseline_learns() -> None:
    run = simulated.run(Trainer(), layouts=(layout(3000.0),))
    outcome = TrainState(run, 20, 20, timed=True)
    assert not outcome.shorten()
    base = TrainTrial(number=0, recipe=Recipe(), state="complete", rungs=(2.0, 6.0, 8.0), epochs=20)
    outcome.trials.append(base)
    assert outcome.shorten()
    assert (outcome.epochs, outcome.reach) == (8, 8)
    assert outcome.length(Recipe())[:2] == (8, (2.0, 8.0))
    assert "within 8 of 20 epochs" in outcome.messages[0]
    assert not TrainState(run, 20, 20, trials=[base]).shorten()  # as many as were asked for


def test_a_trial_that_cannot_be_trained_to_its_end_is_not_begun() -> None:
    # the baseline and the first proposal take 9.1 s each; eight tenths of a third must fit
    assert len(searched(Trainer(), until_s=25.0).trials) == 2
    assert len(searched(Trainer(), until_s=26.5).trials) > 2


def test_the_first_proposal_goes_to_its_end() -> None:
    outcome = searched(Trainer(), until_s=40.0)
    first = next(t for t in outcome.trials if t.why == "initial: adamw, one cycle")
    assert first.state == "complete"


def test_how_slow_a_trial_may_be_follows_from_the_baseline() -> None:
    run = simulated.run(Trainer(), layouts=(layout(900.0), layout(3600.0, batch_size=256)))
    outcome = TrainState(run, 10, 10, timed=True)
    assert outcome.least_rate(Recipe()) is None
    outcome.trials.append(TrainTrial(number=0, recipe=Recipe(), state="complete", wall_s=10.0))
    assert outcome.least_rate(Recipe()) == pytest.approx(300.0)
    assert outcome.least_rate(Recipe(batch_size=256)) == pytest.approx(1200.0)
    assert TrainState(run, 10, 10, trials=outcome.trials).least_rate(Recipe()) is None


def test_a_faster_recipe_trains_for_more_epochs_in_the_same_time() -> None:
    layouts = (layout(900.0), layout(3600.0, batch_size=256))
    run = simulated.run(Trainer(), layouts=layouts)
    outcome = TrainState(run, 10, 10, timed=True)
    assert outcome.length(Recipe())[:2] == (10, (1.0, 3.0, 10.0))
    assert outcome.length(Recipe(batch_size=256))[:2] == (40, (4.0, 13.0, 40.0))
    given = TrainState(run, 10, 10)
    assert given.length(Recipe(batch_size=256)).epochs == 10
    mine = simulated.run(Trainer(), layouts=layouts, own_train=True)
    assert TrainState(mine, 10, 10, timed=True).length(Recipe(batch_size=256)).epochs == 10


def test_a_target_quality_is_reached_at_the_least_cost() -> None:
    trainer = Trainer()
    outcome = searched(trainer, epochs=30, reach=30, target_quality=0.9)
    winner = outcome.winner
    assert winner is not None
    assert winner.costs[0] is not None
    assert winner.costs[0] < 30  # it ended there
    ended = [t for t in outcome.trials if t.state == "complete" and t.costs]
    own = [t.costs[0] for t in ended if t.costs[0] is not None and len(t.repeats) >= 2]
    assert min(own) == winner.costs[0]
    assert any("Quality 0.9 on validation: the recipe takes" in line for line in outcome.messages)
    execution = final.final(outcome.run, winner.recipe, 30, winner)
    assert execution.target_cost == pytest.approx(winner.costs[0])
    verdict = target_quality.verdicts(outcome.run, execution)[0]
    assert (verdict.name, verdict.verdict) == ("target_quality", "MET")


def test_a_target_that_nothing_reaches_is_not_met() -> None:
    outcome = searched(Trainer(), target_quality=0.999)
    winner = outcome.winner
    assert winner is not None
    assert winner.costs[0] is None
    assert any("does not reach it" in line for line in outcome.messages)
    execution = final.final(outcome.run, winner.recipe, 9, winner)
    assert target_quality.verdicts(outcome.run, execution)[0].verdict == "NOT_MET"
    assert execution.target_cost is None


def test_eta_weighs_energy_where_it_is_measured() -> None:
    gpu = Gpu(index=0, name="made up", memory_bytes=1 << 30, power_limit_w=100.0)
    run = simulated.run(Trainer(), budget=Budget(target_quality=0.9, eta=0.25))
    run.profile = msgspec.structs.replace(run.profile, gpus=(gpu,))
    assert target_quality.cost(run, 10.0, 400.0) == 10.0  # no counter: time alone
    assert "eta counts as 0" in " ".join(
        target_quality.report_lines(
            run, TrainTrial(number=0, recipe=Recipe(), state="complete"), None
        )
    )
    run.sources = (EnergySource(name="nvml", label="measured_counter"),)
    assert target_quality.cost(run, 10.0, 400.0) == pytest.approx(0.25 * 400 + 0.75 * 100 * 10)
    assert target_quality.cost(run, 10.0, None) is None


@pytest.fixture(scope="module")
def whole() -> TrainState:
    return searched(Trainer(), until_s=_SHORT_S)


_SHORT_S = 150.0


@pytest.mark.parametrize("moment", sorted(random.Random(0).sample(range(1, 29), 20)))
def test_a_search_killed_at_any_moment_resumes_to_the_same_recipe(
    moment: int, tmp_path: Path, whole: TrainState
) -> None:
    """Half of the way to a rung was kept when it was killed, and is not trained again."""
    assert len(whole.run.bridge.asked) >= 28  # type: ignore[attr-defined]
    trainer, file = Trainer(killed_at=moment), tmp_path / "recording.jsonl"

    def go_on(bridge: Bridge) -> TrainState:
        run = simulated.run(trainer)
        run.bridge = bridge
        outcome = TrainState(run, 9, 9)
        search.search(outcome, _SHORT_S)
        return outcome

    with contextlib.closing(Recorder(trainer, file)) as bridge, pytest.raises(KeyboardInterrupt):
        go_on(bridge)
    recorded = load_recording(file)
    with contextlib.closing(Recorder(trainer, file)) as live:
        resumed = go_on(ReplayBridge(recorded, lambda now: live))
    assert len(recorded) == moment - 1
    assert resumed.winner is not None
    assert whole.winner is not None
    assert resumed.winner.recipe == whole.winner.recipe
    for trial in resumed.trials:  # what was trained before the kill counts, and counts once
        assert trial.train_s == pytest.approx(trial.rungs[-1] if trial.rungs else None)


def _slow_one(recipe: Recipe) -> float:
    return 13.0 if recipe.optimizer == "adamw" else 1.0


def test_a_trial_many_times_as_slow_as_expected_is_not_trained_further() -> None:
    """It is the best of all by its loss; but the final training would take as long."""
    outcome = TrainState(simulated.run(Trainer(epoch_s=_slow_one)), 9, 9, timed=True)
    search.search(outcome, 300.0)
    slow = [t for t in outcome.trials if t.recipe.optimizer == "adamw" and t.rungs]
    assert slow
    assert all(t.rungs == (1.0,) and t.state == "pruned" for t in slow)
    assert outcome.winner is not None
    assert sum(t.wall_s for t in slow) < 0.6 * sum(t.wall_s for t in outcome.trials)


def test_a_trial_goes_on_only_where_its_own_pace_reaches_the_next_rung_in_time() -> None:
    outcome = searched(Trainer(epoch_s=_slow_one), until_s=110.0)
    assert outcome.run.bridge.now() < 130.0, "a whole slow one takes 117 s"


def test_a_replay_that_knows_no_time_pauses_the_same_trials(tmp_path: Path) -> None:
    file = tmp_path / "recording.jsonl"

    def done(bridge: Bridge) -> TrainState:
        run = simulated.run(Trainer())
        run.bridge = bridge
        outcome = TrainState(run, 9, 9, timed=True)
        search.search(outcome, 110.0)
        return outcome

    with contextlib.closing(Recorder(Trainer(epoch_s=_slow_one), file)) as bridge:
        first = done(bridge)
    again = done(ReplayBridge(load_recording(file)))
    assert again.trials == first.trials
