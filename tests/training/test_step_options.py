"""What a step may do is searched where it was measured to pay, and refused with its figure."""

from typing import Any

import msgspec
import pytest

from autotune.context import RunContext
from autotune.records import job as jobs
from autotune.records.budget import Budget, Effort
from autotune.records.plan import Recipe
from autotune.records.report import Failure
from autotune.records.task import Layout, Option
from autotune.training import (
    lengths,
    parallelism,
    search,
    search_space,
    step_options,
    throughput,
    throughput_stage,
    trial,
)
from tests.support import trainer as simulated
from tests.support.simulated import OPTIONS
from tests.support.trainer import Trainer

STEPS = tuple(Option(kind="step", name=name, available=True) for name in ("compile", "recompute"))
ALL = (*OPTIONS, *STEPS)
WHOLE = ("single", 1, 2)


def rate(
    recipe: Recipe, *, gain: float = 1.5, first_s: float = 3.0
) -> jobs.MeasuredThroughput | Failure:
    """Rises to 2000 samples/s; 2 MB a sample, recomputed 0.5 MB at three quarters of the speed."""
    batch = recipe.batch_size
    speed = 1000.0 * recipe.threads * batch / (batch + 200.0)
    speed *= (gain if recipe.compile else 1.0) * (0.75 if recipe.recompute else 1.0)
    each = 0.5e6 if recipe.recompute else 2e6
    return jobs.MeasuredThroughput(
        samples_per_s=speed,
        startup_s=0.1,
        peak_memory_bytes=int(2e8 + each * batch),
        waiting=0.0,
        first_s=first_s if recipe.compile else 0.01,
    )


def judged(trainer: Trainer, **given: Any) -> RunContext:
    given = {"options": ALL, "train_rows": 100_000, **given}
    run = simulated.run(trainer, **given)
    run = throughput_stage.measure(run, 54.0)
    epochs = lengths.horizon(run, 48.0)
    reach = lengths.trial_epochs(run, epochs, 180.0)
    return run.with_survey(options=step_options.judged(run, reach))


def option(run: RunContext, name: str) -> Option:
    return next(o for o in run.survey.options if (o.kind, o.name) == ("step", name))


def dims(run: RunContext) -> dict[str, tuple[Any, ...]]:
    space = search_space.train_space(run.survey, run.effort)
    return {n.dim.name: n.dim.choices for n in space.nodes}


def test_a_compiled_step_that_pays_is_searched_and_seeded() -> None:
    run = judged(Trainer(rate=rate))
    assert option(run, "compile").available
    assert dims(run)["compile"] == (False, True)
    space = search_space.train_space(run.survey, run.effort)
    assert all(values["compile"] for values, _ in search_space.initial(space, Recipe()))
    made = search_space.recipe(search_space.initial(space, Recipe())[0][0], WHOLE, space)
    assert made.compile
    assert search_space.values_of(made, space) is not None
    two = search_space.recipe(search_space.initial(space, Recipe())[0][0], ("ddp", 2, 1), space)
    assert not two.compile


def test_the_gain_counts_the_compilation() -> None:
    def row(**changes: Any) -> Layout:
        fields: dict[str, Any] = {"samples_per_s": 1000.0, "batch_size": 100}
        fields |= {"parallel": "single", "ranks": 1, "threads": 2, "precision": "fp32"}
        return Layout(**(fields | changes))

    rows = (row(), row(compile=True, samples_per_s=2000.0, first_s=5.05))
    assert throughput.net_gain(rows, 50.0) == pytest.approx(50 / (5 + 25))
    assert throughput.net_gain(rows, 5.0) == pytest.approx(5 / 7.5)
    assert throughput.net_gain(rows[:1], 50.0) is None
    assert throughput.net_gain(rows[1:], 50.0) is None


@pytest.mark.parametrize(("gain", "first_s"), [(1.02, 1.0), (1.5, 60.0)])
def test_one_that_does_not_pay_is_refused_with_its_figure(gain: float, first_s: float) -> None:
    run = judged(
        Trainer(rate=lambda recipe: rate(recipe, gain=gain, first_s=first_s)), train_rows=8000
    )
    refused = option(run, "compile")
    assert not refused.available
    assert "x as fast: the first step takes" in (refused.reason or "")
    assert "compile" not in dims(run)


def test_what_cannot_pay_is_not_even_measured() -> None:
    for given in ({"effort": Effort(epochs=1), "train_rows": 900}, {"own_train": True}):
        trainer = Trainer(rate=rate)
        run = judged(trainer, **given)
        asked = [j for j in trainer.asked if isinstance(j, jobs.Throughput)]
        assert not any(job.recipe.compile or job.recipe.recompute for job in asked)
        assert not {"compile", "recompute"} & set(dims(run))


def test_a_compiler_that_fails_is_the_reason() -> None:
    def broken(recipe: Recipe) -> jobs.MeasuredThroughput | Failure:
        failed = Failure(kind="error", message="InductorError: no g++")
        return failed if recipe.compile else rate(recipe)

    assert option(judged(Trainer(rate=broken)), "compile").reason == "error: InductorError: no g++"


def test_what_the_user_holds_fast_or_leaves_out_is_obeyed() -> None:
    slow = Trainer(rate=lambda recipe: rate(recipe, gain=0.5))
    assert dims(judged(slow, effort=Effort(fix=("compile=true",))))["compile"] == (True,)
    out = tuple(msgspec.structs.replace(o, available=False, excluded_by_user=True) for o in STEPS)
    run = judged(Trainer(rate=rate), options=(*OPTIONS, *out))
    assert not any(s.compile for s in run.survey.layouts)
    assert option(run, "compile").excluded_by_user


def test_a_faster_step_trains_for_more_epochs_in_the_same_time() -> None:
    run = judged(Trainer(rate=rate))
    outcome = trial.TrainState(run, 40, 20, timed=True)
    plain = Recipe(threads=2)
    fast = msgspec.structs.replace(plain, compile=True)
    assert outcome.length(fast).epochs > outcome.length(plain).epochs


TIGHT = Budget(train_memory_bytes=5e8)


def test_a_batch_that_memory_forbids_is_recomputed_where_that_is_faster() -> None:
    run = judged(Trainer(rate=rate), budget=TIGHT)
    rows = run.survey.layouts
    plain = [s for s in rows if throughput.plain(s) and s.parallel == "single"]
    assert max(s.batch_size for s in plain if s.peak_memory_bytes and s.threads == 2) == 256
    again = [s for s in rows if s.recompute]
    assert [s.batch_size for s in again] == [512]
    refused = option(run, "recompute")  # 512: 1079 samples/s with it, 256: 1123 without
    assert "1079 samples/s with it, smaller ones 1123" in (refused.reason or "")
    assert max(dims(run)["batch_size"]) == 256

    def cheap(recipe: Recipe) -> jobs.MeasuredThroughput | Failure:
        found = rate(recipe)
        assert isinstance(found, jobs.MeasuredThroughput)
        speed = found.samples_per_s * (1.2 if recipe.recompute else 1.0)
        return msgspec.structs.replace(found, samples_per_s=speed)

    run = judged(Trainer(rate=cheap), budget=TIGHT)
    assert option(run, "recompute").available
    assert max(dims(run)["batch_size"]) == 512
    space = search_space.train_space(run.survey, run.effort)
    large = search_space.values_near(Recipe(batch_size=512), space)
    assert large is not None
    made = search_space.recipe(large, WHOLE, space)
    assert (made.batch_size, made.recompute, made.compile) == (512, True, False)
    small = search_space.values_near(Recipe(batch_size=64), space)
    assert small is not None
    assert not search_space.recipe(small, WHOLE, space).recompute
    assert search_space.values_of(Recipe(batch_size=64, recompute=True), space) is None


def test_out_of_memory_at_every_batch_is_tried_with_recomputation() -> None:
    def full(recipe: Recipe) -> jobs.MeasuredThroughput | Failure:
        return rate(recipe) if recipe.recompute else Failure(kind="oom", message="no memory")

    run = judged(Trainer(rate=full))
    assert option(run, "recompute").available
    assert any(s.recompute and s.samples_per_s for s in run.survey.layouts)


def test_enough_memory_asks_for_no_recomputation() -> None:
    run = judged(Trainer(rate=rate))
    assert option(run, "recompute").reason == "memory forbids no batch that would be faster"
    assert not any(s.recompute for s in run.survey.layouts)


def test_a_compilation_that_the_stage_has_no_time_for_is_not_begun() -> None:
    trainer = Trainer(rate=rate)
    run = simulated.run(trainer, options=ALL, train_rows=100_000)
    rows = parallelism.measure_layouts(run, 30.0)
    assert not any(s.compile for s in step_options.measure(run, rows, run.bridge.now() + 2.0))
    assert any(s.compile for s in step_options.measure(run, rows, run.bridge.now() + 30.0))


LAYOUT = Option(kind="step", name="channels_last", available=True)


@pytest.mark.parametrize(("gain", "pays"), [(1.3, True), (1.02, False), (0.7, False)])
def test_channels_last_where_it_was_measured_to_pay(gain: float, pays: bool) -> None:
    def laid(recipe: Recipe) -> jobs.MeasuredThroughput | Failure:
        found = rate(recipe)
        assert isinstance(found, jobs.MeasuredThroughput)
        faster = gain if recipe.channels_last else 1.0
        return msgspec.structs.replace(found, samples_per_s=faster * found.samples_per_s)

    run = judged(Trainer(rate=laid), options=(*ALL, LAYOUT))
    assert {s.channels_last for s in run.survey.layouts} == {pays}
    assert throughput.channels_last(run.survey.layouts) == pays
    found = option(run, "channels_last")
    assert found.available == pays
    assert pays or "samples/s with it" in (found.reason or "")
    outcome = trial.TrainState(run, 4, 4)
    search.search(outcome, run.bridge.now() + 40.0)
    assert {t.recipe.channels_last for t in outcome.trials} == {pays}


def test_a_layout_that_the_model_cannot_have_is_refused_with_its_failure() -> None:
    def broken(recipe: Recipe) -> jobs.MeasuredThroughput | Failure:
        failed = Failure(kind="error", message="view size is not compatible")
        return failed if recipe.channels_last else rate(recipe)

    run = judged(Trainer(rate=broken), options=(*ALL, LAYOUT))
    assert option(run, "channels_last").reason == "error: view size is not compatible"
    assert not throughput.channels_last(run.survey.layouts)
