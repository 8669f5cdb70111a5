"""Memory and link arithmetic against numbers worked out by hand from the papers' forms."""

from functools import partial

import pytest

from autotune.planning import parallel_cost
from tests.support import planned


@pytest.mark.parametrize(
    ("zero", "dp", "expected"),
    [(0, 1, 16), (0, 64, 16), (1, 64, 4 + 12 / 64), (2, 64, 2 + 14 / 64), (3, 64, 16 / 64)],
)
def test_mixed_adam_keeps_16_bytes_a_parameter_sharded_by_zero(zero, dp, expected):
    assert parallel_cost.state_bytes_per_parameter("bf16", zero, dp) == pytest.approx(expected)


def test_fp32_keeps_16_bytes_too():
    assert parallel_cost.state_bytes_per_parameter("fp32", 0, 4) == 16
    assert parallel_cost.state_bytes_per_parameter("fp32", 1, 4) == 8 + 8 / 4


def test_activations_of_gpt3_by_the_paper():
    # arXiv 2205.05198: GPT-3 has a 96, h 12288, s 2048: 5as/h = 80
    shape = planned.decoder(layers=96, hidden=12288, sequence=2048, heads=96, fused=False)
    assert shape.transformer is not None
    sbh = 2048 * 12288
    layer = partial(parallel_cost.layer_activation_bytes, dropout=True)
    assert layer(shape.transformer, 1, 1, "none", "bf16") == pytest.approx(sbh * (34 + 80))
    assert layer(shape.transformer, 1, 8, "none", "bf16") == pytest.approx(sbh * (10 + 3 + 10))
    assert layer(shape.transformer, 1, 1, "selective", "bf16") == pytest.approx(34 * sbh)
    assert layer(shape.transformer, 3, 1, "full", "bf16") == pytest.approx(3 * 2 * sbh)
    assert layer(shape.transformer, 1, 1, "selective", "fp32") == pytest.approx(2 * 34 * sbh)
    bare = parallel_cost.layer_activation_bytes(
        shape.transformer, 1, 8, "none", "bf16", dropout=False
    )
    assert bare == pytest.approx(sbh * (8 + 3 + 10))


def test_fused_attention_keeps_no_scores():
    shape = planned.decoder(fused=True).transformer
    assert shape is not None
    sbh = shape.sequence * shape.hidden
    found = parallel_cost.layer_activation_bytes(shape, 1, 1, "none", "bf16", dropout=True)
    assert found == 34 * sbh


def test_stage_holds_its_blocks_and_the_larger_end():
    model = planned.decoder(layers=4, hidden=64, vocabulary=1000)
    block, table = 12 * 4 * 64**2, 1000 * 64
    assert parallel_cost.stage_parameters(model, 1, 1) == block + 2 * table
    assert parallel_cost.stage_parameters(model, 4, 1) == block / 4 + table
    assert parallel_cost.stage_parameters(model, 4, 2) == (block / 4 + table) / 2


def test_training_bytes_add_up():
    model = planned.decoder(layers=4, hidden=64, sequence=128, vocabulary=1000)
    sbh = 128 * 64
    expected = 16 * model.parameters + 4 * 32 * sbh + 8 * 128 * 1000
    assert parallel_cost.training_bytes(model, planned.plan()) == pytest.approx(expected)


def test_a_pipelines_first_stage_holds_a_micro_batch_for_every_stage():
    model = planned.decoder(layers=4, vocabulary=8)
    one = parallel_cost.activation_bytes(model, planned.plan())
    piped = planned.plan(batch_size=8, pp=4, micro_batches=8)
    few = planned.plan(batch_size=2, pp=4, micro_batches=2)
    logits = 8 * 128 * 8
    assert parallel_cost.activation_bytes(model, piped) == pytest.approx(one - logits)
    assert parallel_cost.activation_bytes(model, few) == pytest.approx((one - logits) / 2)


def test_ring_all_reduce():
    # 4 ranks, 1 GB at 100 GB/s: 2 x 3 messages of 10 us, 2 x 3/4 x 10 ms
    assert parallel_cost.all_reduce_s(1e9, 4, 1e11, 1e-5) == pytest.approx(6e-5 + 1.5e-2)
    assert parallel_cost.all_reduce_s(1e9, 1, 1e11, 1e-5) == 0


def test_bubble():
    assert parallel_cost.bubble(1, 8) == 0
    assert parallel_cost.bubble(4, 12) == 0.25
