"""The hardware stage on simulated rates: the knee, what fits, what pays."""

from typing import Any

import msgspec
import pytest

from autotune.context import RunContext, Silent
from autotune.records import job as jobs
from autotune.records.budget import Budget, Effort
from autotune.records.measurement import EnergySource
from autotune.records.plan import Recipe
from autotune.records.report import Failure
from autotune.records.task import Layout, Option, Survey
from autotune.training import search_space, throughput, throughput_stage
from tests.support import made
from tests.support import trainer as simulated
from tests.support.simulated import OPTIONS
from tests.support.trainer import Trainer

BF16 = (*OPTIONS, Option(kind="precision", name="bf16", available=True))


def rate(recipe: Recipe) -> jobs.MeasuredThroughput | Failure:
    """Saturates at 1000 samples/s a thread; half of that at a batch of 64; 1 MB a sample."""
    batch = recipe.batch_size / recipe.accumulate
    speed = 1000.0 * recipe.threads * batch / (batch + 64.0)
    speed *= 2.5 if recipe.precision == "bf16" else 1.0
    return jobs.MeasuredThroughput(
        samples_per_s=speed,
        startup_s=0.1,
        peak_memory_bytes=int(2e8 + 1e6 * batch),
        waiting=0.0,
    )


def measured(trainer: Trainer, budget_s: float = 100.0, **given: object) -> tuple[Layout, ...]:
    given.setdefault("options", OPTIONS)
    given.setdefault("train_rows", 100_000)
    return throughput_stage.measure(simulated.run(trainer, **given), budget_s).survey.layouts  # type: ignore[arg-type]


def test_the_curve_ends_at_the_knee_and_not_at_the_largest_that_fits() -> None:
    rows = measured(Trainer(rate=rate))
    sizes = [s.batch_size for s in rows if s.threads == 2 and s.parallel == "single"]
    assert max(sizes) == 1024  # where doubling gained less than a tenth
    assert throughput.knee(rows) == 512  # 0.94 of that


def test_a_batch_beyond_the_memory_is_not_tried() -> None:
    rows = measured(Trainer(rate=rate), budget=Budget(train_memory_bytes=3e8), train_rows=2000)
    assert max(s.batch_size for s in rows if s.parallel == "single") <= 128


def test_out_of_memory_ends_the_curve_and_the_space() -> None:
    def limited(recipe: Recipe) -> jobs.MeasuredThroughput | Failure:
        over = recipe.batch_size > 128
        return Failure(kind="oom", message="no memory") if over else rate(recipe)

    rows = measured(Trainer(rate=limited))
    assert any(s.failure for s in rows)
    survey = Survey(
        task=made.info(train_rows=100_000), traits=made.traits(), options=OPTIONS, layouts=rows
    )
    assert throughput.batch_sizes(survey) == (16, 32, 64, 128)


def test_a_precision_is_searched_where_it_was_measured_to_pay() -> None:
    rows = measured(Trainer(rate=rate), options=BF16)
    assert throughput.gain(rows, "bf16") == pytest.approx(2.5)
    survey = Survey(task=made.info(), traits=made.traits(), options=BF16, layouts=rows)
    assert throughput.precisions(survey) == ("fp32", "bf16")

    def no_gain(recipe: Recipe) -> jobs.MeasuredThroughput | Failure:
        return rate(Recipe(batch_size=recipe.batch_size, threads=recipe.threads))

    rows = measured(Trainer(rate=no_gain), options=BF16)
    survey = Survey(task=made.info(), traits=made.traits(), options=BF16, layouts=rows)
    assert throughput.precisions(survey) == ("fp32",)


def test_what_the_user_holds_fast_need_not_pay() -> None:
    rows = measured(Trainer(rate=rate), options=BF16, train_rows=100_000)
    slow = tuple(
        msgspec.structs.replace(s, samples_per_s=1.0) if s.precision == "bf16" else s for s in rows
    )
    task = made.info(train_rows=100_000)
    survey = Survey(task=task, traits=made.traits(), options=BF16, layouts=slow)
    fixed = Effort(fix=("precision=bf16", "batch_size=4096"))
    held = {n.dim.name: n.dim.choices for n in search_space.train_space(survey, fixed).nodes}
    assert (held["precision"], held["batch_size"]) == (("bf16",), (4096,))
    free = {n.dim.name: n.dim.choices for n in search_space.train_space(survey, Effort()).nodes}
    assert "precision" not in free
    assert max(int(size) for size in free["batch_size"]) == 512


def test_workers_are_tried_where_batches_are_waited_for() -> None:
    def waiting(recipe: Recipe) -> jobs.MeasuredThroughput | Failure:
        slow = 300.0 * (1 + recipe.workers)
        return jobs.MeasuredThroughput(
            samples_per_s=slow, startup_s=0.1, peak_memory_bytes=10**8, waiting=0.6
        )

    rows = measured(Trainer(rate=waiting), train_rows=2000)
    assert throughput.workers(rows) == 1
    assert throughput.workers(measured(Trainer(rate=rate), train_rows=2000)) == 0


def test_short_of_time_one_split_is_enough_and_no_group_is_started() -> None:
    trainer = Trainer(rate=rate)
    rows = measured(trainer, budget_s=2.0)
    assert rows[0].parallel == "single"
    assert all(s.parallel == "single" for s in rows)
    assert trainer.clock_s < 5.0


def test_speed_lies_between_what_was_measured() -> None:
    rows = measured(Trainer(rate=rate), options=BF16)
    fast = Recipe(batch_size=64, threads=2)
    assert throughput.speed(rows, fast) == pytest.approx(1000.0)
    between = throughput.speed(rows, Recipe(batch_size=90, threads=2))
    assert between is not None
    assert 1000 < between < 1334
    half = Recipe(batch_size=64, threads=2, precision="bf16")
    assert throughput.speed(rows, half) == pytest.approx(2500.0)
    assert throughput.speed((), fast) is None


def test_an_own_loop_is_measured_as_it_is() -> None:
    rows = measured(Trainer(rate=rate), own_train=True, train_rows=2000)
    assert {s.batch_size for s in rows} == {32, 128}


def powered(recipe: Recipe) -> jobs.MeasuredThroughput | Failure:
    """Less power costs little time down to 175 W, and much below."""
    watts = recipe.power_limit_w or 250.0
    speed = 1000.0 * recipe.batch_size / (recipe.batch_size + 64.0)
    speed /= 1 + max(0.0, 250.0 - watts) / 1000 + 5 * max(0.0, 175.0 - watts) / 100
    return jobs.MeasuredThroughput(
        samples_per_s=speed,
        startup_s=0.1,
        peak_memory_bytes=10**8,
        waiting=0.0,
        energy_j_per_sample=watts / speed if recipe.power_limit_w else None,
    )


def with_counter(trainer: Trainer, **given: Any) -> RunContext:
    run = simulated.run(trainer, train_rows=100_000, **given)
    run.sources = (EnergySource(name="nvml", label="measured_counter"),)
    return run


def test_a_power_limit_is_found_where_it_is_allowed_and_energy_counts() -> None:
    allowed = Effort(allow_power_limit=True)
    trainer = Trainer(rate=powered)
    run = with_counter(trainer, effort=allowed, budget=Budget(train_energy_j=1e3))
    rows = throughput_stage.measure(run, 100.0).survey.layouts
    assert throughput.gpu_setting(rows) == (175.0, None)
    tried = [job for job in trainer.asked if isinstance(job, jobs.Throughput) and job.meter]
    assert 1 < len(tried) <= 12
    assert throughput.gpu_setting(()) == (None, None)


def clocked(recipe: Recipe) -> jobs.MeasuredThroughput | Failure:
    """Down to 1.4 GHz a lower clock costs a hundredth of the time and a tenth of the energy."""
    found = powered(recipe)
    assert isinstance(found, jobs.MeasuredThroughput)
    hz = recipe.clock_hz or 2e9
    slow = 1 + (2e9 - hz) / 60e9 + 20 * max(0.0, 1.4e9 - hz) / 1e9
    joules = found.energy_j_per_sample
    if joules is not None:
        joules *= slow * (hz / 2e9) ** 0.5
    return msgspec.structs.replace(
        found, samples_per_s=found.samples_per_s / slow, energy_j_per_sample=joules
    )


def test_clocks_are_tried_at_the_best_limit_and_left_where_they_gain_nothing() -> None:
    limits = jobs.PowerLimits(low_w=100.0, high_w=250.0, low_hz=2e8, high_hz=2e9)
    effort = Effort(allow_power_limit=True)

    def setting(rate: Any) -> tuple[float | None, float | None]:
        trainer = Trainer(rate=rate, limits=limits)
        run = with_counter(trainer, effort=effort, budget=Budget(train_energy_j=1e3))
        rows = throughput_stage.measure(run, 100.0).survey.layouts
        tried = [s for s in rows if s.clock_hz]
        assert {s.power_limit_w for s in tried} == {175.0}
        assert len(tried) <= 5
        return throughput.gpu_setting(rows)

    assert setting(clocked) == (175.0, 1.4e9)
    assert setting(powered) == (175.0, None)


@pytest.mark.parametrize(
    ("allowed", "budget"), [(False, {"train_energy_j": 1e3}), (True, {}), (True, {"eta": 0.0})]
)
def test_no_limit_is_touched_otherwise(allowed: bool, budget: dict[str, float]) -> None:
    trainer = Trainer(rate=powered)
    effort = Effort(allow_power_limit=allowed)
    run = with_counter(trainer, effort=effort, budget=Budget(**budget))
    rows = throughput_stage.measure(run, 100.0).survey.layouts
    assert not any(isinstance(job, jobs.PowerRange) for job in trainer.asked)
    assert not any(s.power_limit_w for s in rows)


def test_a_limit_that_cannot_be_set_is_said() -> None:
    limits = jobs.PowerLimits(reason="NVML answers no permission")
    trainer = Trainer(rate=powered, limits=limits)
    notes: list[str] = []
    effort = Effort(allow_power_limit=True)
    run = with_counter(trainer, effort=effort, budget=Budget(train_energy_j=1e3))
    run.listener = Noting(notes)
    assert not any(s.power_limit_w for s in throughput_stage.measure(run, 100.0).survey.layouts)
    assert notes == ["The power limit stays as it is: NVML answers no permission."]


class Noting(Silent):
    def __init__(self, notes: list[str]) -> None:
        self.notes = notes

    def note(self, text: str) -> None:
        self.notes.append(text)
