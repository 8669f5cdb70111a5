"""Step times: parts by hand, and what must hold between plans."""

import math

import pytest

from autotune.planning import training_time
from autotune.planning.machines import ComputeRate
from tests.support import made, planned

MODEL = planned.decoder(layers=32, hidden=4096, sequence=2048, heads=32, vocabulary=50000)
SHAPE = MODEL.transformer
assert SHAPE is not None


def parts(plan, machine=None):
    found = training_time.forecast(MODEL, machine or planned.machine(), plan)
    return dict(zip(training_time.PARTS, found.parts, strict=True))


def test_products_are_three_passes_at_a_share_of_the_best_rate():
    linear = MODEL.flops_per_sample - SHAPE.attention_flops_per_sample
    found = parts(planned.plan(), planned.machine(devices=1, per_node=1))
    assert found["matrix products"] == pytest.approx(3 * linear / (1e14 * training_time.PRODUCTS))
    assert found["attention"] == pytest.approx(
        3 * SHAPE.attention_flops_per_sample / (1e14 * training_time.ATTENTION)
    )
    assert found["tensor parallel"] == found["pipeline bubble"] == found["data parallel"] == 0


def test_full_recomputation_repeats_the_blocks_and_not_the_head():
    head = MODEL.flops_per_sample - SHAPE.block_flops_per_sample
    linear = SHAPE.block_flops_per_sample - SHAPE.attention_flops_per_sample
    found = parts(planned.plan(recompute="full"))
    assert found["matrix products"] == pytest.approx(
        (4 * linear + 3 * head) / (1e14 * training_time.PRODUCTS)
    )


def test_bubble_is_p_minus_1_over_m_of_the_work():
    found = parts(planned.plan(batch_size=16, pp=4, micro_batches=16))
    names = ("matrix products", "attention", "memory traffic", "tensor parallel")
    assert found["pipeline bubble"] == pytest.approx(3 / 16 * sum(found[n] for n in names))


def test_tensor_parallel_reduces_four_times_a_layer():
    found = parts(planned.plan(tp=4))
    size = 2048 * 4096 * 2
    once = 2 * 3 * 4e-6 + 2 * 3 / 4 * size / (1e11 * training_time.LINK)
    assert found["tensor parallel"] == pytest.approx(4 * 32 * once)


def test_zero_3_exchanges_more_and_every_micro_batch():
    slow = planned.machine(link=1e9, network=1e9)
    one, two = (
        parts(planned.plan(batch_size=32, dp=8, micro_batches=4, zero=z), slow)["data parallel"]
        for z in (1, 3)
    )
    assert two > 5 * one > 0


def test_the_network_is_shared_by_the_groups_of_a_node():
    across = {"devices": 16, "network": 1e9}
    alone = parts(planned.plan(batch_size=16, dp=16), planned.machine(**across))
    shared = parts(planned.plan(batch_size=4, dp=4, tp=4), planned.machine(**across))
    assert shared["data parallel"] > 0.5 * alone["data parallel"] > 0


def test_interval_is_wider_where_the_rate_is_assumed():
    guessed = planned.machine(rates={"bf16": ComputeRate(1e14, 1.3e14, False)})
    known = training_time.forecast(MODEL, planned.machine(), planned.plan())
    assumed = training_time.forecast(MODEL, guessed, planned.plan())
    assert assumed.time_sd > known.time_sd
    found = training_time.predicted(known, planned.machine())
    assert found.time_s.low < found.time_s.value < found.time_s.high
    assert found.statement == "predicted, not measured on the target"


def test_without_a_power_limit_energy_is_unknown():
    machine = planned.machine(power_limit_w=None)
    found = training_time.predicted(training_time.forecast(MODEL, machine, planned.plan()), machine)
    assert found.energy_j_per_sample is None
    known = training_time.predicted(
        training_time.forecast(MODEL, planned.machine(devices=1, per_node=1), planned.plan()),
        planned.machine(devices=1, per_node=1),
    )
    assert known.energy_j_per_sample is not None
    assert 0.2 * 400 < known.energy_j_per_sample.value / known.time_s.value < 400


def test_other_models_are_predicted_with_a_wider_interval():
    model = made.traits(flops_per_sample=1e9, op_calls={"conv": 20})
    found = training_time.forecast(
        model, planned.machine(), planned.plan(batch_size=8, micro_batch=8)
    )
    assert found.time_sd > training_time.forecast(MODEL, planned.machine(), planned.plan()).time_sd
    # 60 launches of 5 us take longer than 30 GFLOP at 100 TFLOP/s; the optimizer launches 200
    assert found.time_s == pytest.approx((3 * 20 + 200) * 5e-6, rel=0.1)
    one = planned.machine(kind="cpu", devices=1, per_node=1)
    serial = training_time.forecast(model, one, planned.plan())
    parts = dict(zip(training_time.PARTS, serial.parts, strict=True))
    assert parts["waiting for launches"] == pytest.approx(3 * 20 * 3 * 5e-6)


@pytest.mark.parametrize(
    ("limit", "expected"), [(math.inf, 1.0), (0.0, 0.0), (1.0, 0.5), (1e9, 1.0), (1.2816, 0.599)]
)
def test_probability_of_a_lognormal(limit, expected):
    assert training_time.probability_below(limit, 1.0, 0.9898) == pytest.approx(expected, abs=2e-3)


def test_ninety_per_cent_lie_in_the_interval():
    found = training_time.estimate(2.0, 0.3)
    inside = training_time.probability_below(
        found.high, 2.0, 0.3
    ) - training_time.probability_below(found.low, 2.0, 0.3)
    assert inside == pytest.approx(0.9)
