"""A training step's seconds and joules before anything is trained: modelled, and said to be."""

from typing import Any

import msgspec
import pytest

from autotune.context import RunContext
from autotune.pipeline import cost_preview
from autotune.records.budget import Budget, Effort
from autotune.records.hardware import Gpu, Leaf
from autotune.records.measurement import Interval
from autotune.records.task import Layout
from tests.support import made

LAYOUT = Layout(
    parallel="single", ranks=1, threads=2, batch_size=32, precision="fp32", samples_per_s=3200.0
)
OPTION = made.option(kind="parallel", name="single")


def watts(value: float | None, low: float | None = None, high: float | None = None) -> Leaf:
    return Leaf(value=value, unit="W", source="measured", low=low, high=high)


POWER = {"idle_power_w": watts(10.0, 9.0, 11.0), "loaded_power_2t_w": watts(30.0, 29.0, 31.0)}


def run(figures: dict[str, Leaf] | None = None, **given: Any) -> RunContext:
    found = made.run(task=made.info(train_rows=800), layouts=(LAYOUT,), **given)
    found.survey = msgspec.structs.replace(found.survey, options=(OPTION,))
    found.profile = made.profile(measured=figures or {})
    return found


def test_a_step_by_the_layouts_rate() -> None:
    found = cost_preview.step_cost(run(), epochs=10)
    assert found is not None
    assert found.step_s.value == pytest.approx(0.01)
    assert found.step_s.low < 0.01 < found.step_s.high
    assert (found.batch_size, found.steps, found.step_j) == (32, 250, None)
    (line,) = cost_preview.step_lines(found)
    assert line.startswith("A training step of 32 samples takes about 10.0 ms")
    assert "modelled" in line


def test_joules_by_the_measured_power_between_idle_and_loaded() -> None:
    found = cost_preview.step_cost(run(POWER), epochs=10)
    assert found is not None
    assert found.step_j is not None
    assert found.step_j.value == pytest.approx(0.28)  # 10 W and nine tenths of 20 W, 10 ms
    assert found.step_j.low < 0.19 < 0.31 < found.step_j.high
    text = " ".join(cost_preview.step_lines(found))
    assert "280 mJ" in text
    assert "the whole training 70.0 J" in text
    assert "modelled from the machine's measured power, not measured" in text


@pytest.mark.parametrize(("given", "whose"), [
    ({"effort": Effort(cpu_idle_w=20.0, cpu_max_w=60.0)}, "the watts you gave"),
    ({"budget": Budget(train_energy_j=5.0)}, "a prior a core (no power is known here)"),
    ({}, None),
])  # fmt: skip
def test_without_measured_power_it_uses_the_given_watts(
    given: dict[str, Any], whose: str | None
) -> None:
    unknown = {"idle_power_w": watts(None), "loaded_power_2t_w": watts(None)}
    found = cost_preview.step_cost(run(unknown, **given), epochs=1)
    assert found is not None
    assert found.watts == whose
    assert (found.step_j is None) == (whose is None)


def test_on_boards_it_is_theirs_alone() -> None:
    one = run(POWER)
    figures = {"idle_power_w": watts(50.0), "loaded_power_w": watts(450.0)}
    gpu = Gpu(index=0, name="x", memory_bytes=1, figures=figures)
    one.profile = msgspec.structs.replace(one.profile, gpus=(gpu,))
    found = cost_preview.step_cost(one, epochs=1)
    assert found is not None
    assert found.step_j is not None
    assert found.step_j.value == pytest.approx(4.1)
    assert found.watts == "the measured power of the boards alone"


def test_nothing_is_said_where_no_split_could_be_measured() -> None:
    one = run()
    one.survey = msgspec.structs.replace(one.survey, layouts=())
    assert cost_preview.step_cost(one, epochs=10) is None
    assert cost_preview.step_cost(run(), epochs=0) is None


def test_the_forecast_says_it() -> None:
    found = cost_preview.preview(
        cost_preview.Costs(spent_s=1.0, evaluation_s=1.0, training_s=9.0), 600.0
    )
    step = cost_preview.StepCost(batch_size=32, step_s=Interval(value=1e-3, low=9e-4, high=2e-3))
    said = cost_preview.lines(msgspec.structs.replace(found, step=step), 600.0)
    assert any("A training step of 32 samples" in line for line in said)
    assert not any("A training step" in line for line in cost_preview.lines(found, 600.0))


def test_a_time_is_recommended_as_one_would_type_it() -> None:
    from autotune.pipeline.cost_preview import round_up

    assert [round_up(s) for s in (101.9, 110.0, 300.0, 301.0)] == ["110s", "110s", "300s", "6min"]
