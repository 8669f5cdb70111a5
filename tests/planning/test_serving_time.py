"""Deployment plans: what bounds them, what is offered, what comes first."""

import pytest

from autotune.planning import serving_time
from autotune.planning.machines import ComputeRate
from autotune.records.outlook import ServingPlan
from tests.support import made, planned

MODEL = planned.decoder(layers=32, hidden=4096, sequence=2048, heads=32, vocabulary=50000)
RATES = {
    k: ComputeRate(1e14 * x, 1.2e14 * x, True) for k, x in (("bf16", 1), ("fp16", 1), ("int8", 2))
}


def call(model=MODEL, target=None, **changes):
    fields = {"batch_size": 1, "precision": "bf16", "runtime": "eager", "tp": 1} | changes
    return serving_time.forecast(
        model, target or planned.machine(rates=RATES), ServingPlan(**fields)
    )


def test_narrow_types_need_an_engine_and_fp16_is_not_listed_twice():
    found = list(serving_time.plans(MODEL, planned.machine(rates=RATES), (1,)))
    assert {p.precision for p in found} == {"bf16", "int8"}
    assert {p.runtime for p in found if p.precision == "int8"} == {"engine"}
    assert {p.tp for p in found} == {1, 2, 4, 8}


def test_one_token_is_bound_by_reading_the_weights():
    model = planned.decoder(layers=32, hidden=4096, sequence=1, heads=32, vocabulary=50000)
    found = call(model, runtime="engine")
    assert found.time_s == pytest.approx(found.parts["reading weights"], rel=0.1)
    assert found.parts["reading weights"] == pytest.approx(2 * model.parameters / 0.85e12)


def test_small_models_on_an_accelerator_wait_for_launches():
    model = made.traits(flops_per_sample=1e6, op_calls={"all": 100})
    assert call(model).time_s == pytest.approx(100 * 5e-6)
    assert call(model, runtime="compiled").time_s < 100 * 5e-6


def test_memory_holds_the_weights_in_their_type():
    half, narrow = call(), call(precision="int8", runtime="engine")
    assert half.memory_bytes - narrow.memory_bytes == pytest.approx(1.04 * MODEL.parameters)
    assert call(tp=8).memory_bytes < half.memory_bytes / 3


def test_the_goal_orders():
    target = planned.machine(rates=RATES)
    fast, _ = serving_time.rank(MODEL, target, (1,), "latency")
    thrifty, _ = serving_time.rank(MODEL, target, (1,), "energy")
    small, _ = serving_time.rank(MODEL, target, (1,), "memory")
    many, _ = serving_time.rank(MODEL, target, (1, 16), "throughput")
    assert fast[0].time_s == min(c.time_s for c in fast)
    assert thrifty[0].plan.tp == 1
    assert small[0].memory_bytes == min(c.memory_bytes for c in small)
    assert many[0].plan.tp == 1
    assert fast[0].plan.tp > 1


def test_what_does_not_fit_is_not_offered():
    fitting, others = serving_time.rank(
        MODEL, planned.machine(rates=RATES, memory_bytes=9e9), (1,), "latency"
    )
    assert {c.plan.tp for c in others} >= {1}
    assert all(c.plan.tp > 1 or c.plan.precision == "int8" for c in fitting)


def test_predictions_carry_their_interval_and_sentence():
    target = planned.machine(rates=RATES)
    found = serving_time.predicted(call(target=target), target)
    assert found.time_s.low < found.time_s.value < found.time_s.high
    assert found.statement == "predicted, not measured on the target"
    assert found.energy_j_per_sample is not None
