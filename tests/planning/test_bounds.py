"""Lower bounds: by hand, and never above a prediction."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.planning import bounds, ranking, serving_time, training_time
from autotune.planning.machines import machine
from tests.support import made, planned

LARGE = planned.decoder(layers=80, hidden=8192, sequence=4096, heads=64, vocabulary=32000)


def test_one_device_cannot_train_seventy_billion():
    target = machine(planned.profile("h100-sxm"))
    said = bounds.one_device(LARGE, target)
    assert said is not None
    assert "64.9 billion parameters x 16 bytes" in said
    assert "= 1.04 TB" in said
    assert "80.0 GB" in said
    assert "13.0 times too much" in said
    assert bounds.one_device(planned.decoder(), target) is None


def test_training_memory_is_16_bytes_a_parameter_over_all_devices():
    found = bounds.training_memory(LARGE, planned.machine(devices=64))
    assert found.value == 16 * LARGE.parameters / 64


def test_step_time_takes_three_passes_of_a_transformer_and_two_of_others():
    target = planned.machine()
    found = bounds.step_time(LARGE, target, 8, ("bf16",))
    assert found.value == pytest.approx(3 * 8 * LARGE.flops_per_sample / (8 * 1.05e14))
    plain = made.traits(flops_per_sample=1e12)
    assert bounds.step_time(plain, target, 8, ("bf16",)).value == pytest.approx(
        2 * 8 * 1e12 / (8 * 1.05e14)
    )


def test_convolutions_may_be_done_with_a_quarter_of_the_products():
    plain = made.traits(flops_per_sample=1e12)
    conv = made.traits(flops_per_sample=1e12, op_flops={"convolution": 1e12})
    target = planned.machine()
    ratio = bounds.latency(plain, target, 1).value / bounds.latency(conv, target, 1).value
    assert ratio == pytest.approx(4)


def test_latency_is_bound_by_reading_the_blocks():
    model = planned.decoder(layers=32, hidden=4096, sequence=1, heads=32, vocabulary=50000)
    target = planned.machine(devices=1, per_node=1, cache_bytes=1e9)
    found = bounds.latency(model, target, 1)
    blocks = 12 * 32 * 4096**2
    assert found.value == pytest.approx((2 * blocks - 1e9) / 1.05e12)
    blind = planned.machine(devices=1, per_node=1, bandwidth_most=None)
    assert bounds.latency(model, blind, 1).value < found.value


@given(
    layers=st.integers(1, 48),
    hidden=st.sampled_from([64, 512, 4096]),
    sequence=st.sampled_from([16, 1024, 8192]),
    per_device=st.sampled_from([1, 8]),
)
def test_no_bound_lies_above_a_prediction(layers, hidden, sequence, per_device):
    model = planned.decoder(layers=layers, hidden=hidden, sequence=sequence, heads=8)
    target = planned.machine()
    batch = 8 * per_device
    step = bounds.step_time(model, target, batch, ("bf16", "fp32")).value
    memory = bounds.training_memory(model, target).value
    for plan in ranking.plans(model, target, (batch,), ("bf16", "fp32")):
        found = training_time.forecast(model, target, plan)
        assert step <= found.time_s
        assert memory <= found.memory_bytes
    call_s = bounds.latency(model, target, per_device).value
    held = bounds.serving_memory(model, target).value
    for served in serving_time.plans(model, target, (per_device,)):
        call = serving_time.forecast(model, target, served)
        assert call_s <= call.time_s
        assert held <= call.memory_bytes
