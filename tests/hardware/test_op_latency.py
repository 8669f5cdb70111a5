"""Estimates: sums of operators, residuals from one run, intervals that hold the value."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.deployment.initial_order import Foresight
from autotune.hardware import op_latency
from autotune.records.measurement import OpReplay, OpTime
from autotune.records.plan import Deployment, Step

MS = 1e-3


def replay(batch: int, threads: int = 1, per_sample: float = MS) -> OpReplay:
    ops = (
        OpTime(kind="matmul", calls=2, eager_s=per_sample * batch, onnx_s=0.5 * per_sample * batch,
               packed_s=0.6 * per_sample * batch),
        OpTime(kind="pointwise", calls=2, eager_s=0.1 * per_sample * batch, fused=True),
        OpTime(kind="normal", calls=1, eager_s=0.2 * per_sample * batch, fused=True),
    )  # fmt: skip
    return OpReplay(batch_size=batch, threads=threads, ops=ops)


REPLAYS = (replay(1), replay(8))
EAGER = 2.4 * MS


def test_eager_is_the_sum_of_its_operators() -> None:
    assert op_latency.total_s(REPLAYS[0], "eager") == pytest.approx(EAGER)


@pytest.mark.parametrize("runtime", ["compiled", "onnxruntime"])
def test_fusing_runtimes_have_kernels_of_their_own_and_fold_norms(runtime: str) -> None:
    heavy, light, norm = REPLAYS[0].ops
    assert op_latency.op_s(norm, runtime) == 0
    assert op_latency.op_s(light, runtime) < light.eager_s / 2
    own = heavy.packed_s if runtime == "compiled" else heavy.onnx_s
    assert op_latency.op_s(heavy, runtime) == own


@pytest.mark.parametrize("batch", [1, 2, 4, 8, 16])
def test_batches_between_and_beyond_are_on_the_line(batch: int) -> None:
    found = op_latency.operators_s(REPLAYS, "eager", batch, 1)
    assert found == pytest.approx(EAGER * batch)


def test_what_was_not_replayed_is_not_known() -> None:
    assert op_latency.operators_s(REPLAYS, "eager", 1, 2) is None
    assert op_latency.latency_s((), (), "eager", 1, 1) is None
    assert op_latency.latency_s(REPLAYS, (), "openvino", 1, 1) is None


def test_two_passes_that_lie_apart_widen_the_interval_at_their_threads() -> None:
    def width(*replays: OpReplay) -> float:
        anchor = op_latency.Anchor("eager", 1, 1, 2 * EAGER)
        found = op_latency.latency_s(replays, (anchor,), "eager", 1, 1)
        assert found is not None
        return math.log(found.high / found.value) / 1.645

    apart = [msgspec.structs.replace(r, apart=a) for r, a in zip(REPLAYS, (0.3, 0.4), strict=True)]
    assert width(*REPLAYS) == pytest.approx(0.06)
    assert width(*apart) == pytest.approx(math.hypot(0.06, 0.67 * 0.35))
    elsewhere = [msgspec.structs.replace(r, threads=2) for r in apart]
    assert width(*REPLAYS, *elsewhere) == pytest.approx(0.06)


def test_the_middles_of_three_differ_by_two_thirds_of_what_two_readings_do() -> None:
    readings = np.random.default_rng(0).normal(size=(20_000, 2, 3))
    middles = np.median(readings, axis=2)
    two = readings[:, 0, 0] - readings[:, 1, 0]
    assert np.std(middles[:, 0] - middles[:, 1]) / np.std(two) == pytest.approx(
        op_latency._OF_MIDDLES, abs=0.01
    )


def test_one_run_fixes_the_scale_and_narrows_the_interval() -> None:
    free = op_latency.latency_s(REPLAYS, (), "eager", 8, 1)
    anchor = op_latency.Anchor("eager", 1, 1, 2 * EAGER)
    held = op_latency.latency_s(REPLAYS, (anchor,), "eager", 8, 1)
    assert free is not None
    assert held is not None
    assert free.value == pytest.approx(8 * EAGER)
    assert held.value == pytest.approx(16 * EAGER, rel=0.01)
    assert held.high / held.low < free.high / free.low
    same = op_latency.latency_s(REPLAYS, (anchor,), "eager", 1, 1)
    assert same is not None
    assert same.value == pytest.approx(2 * EAGER)


def test_a_small_excess_is_host_overhead_and_does_not_grow_with_the_batch() -> None:
    anchor = op_latency.Anchor("eager", 1, 1, EAGER + 10e-6)
    found = op_latency.latency_s(REPLAYS, (anchor,), "eager", 8, 1)
    assert found is not None
    assert found.value == pytest.approx(8 * EAGER + 10e-6)


def test_compression_widens_the_interval() -> None:
    pruned = Deployment(compress=(Step(name="prune", params={"macs_kept": 0.5}),))
    anchor = op_latency.Anchor("eager", 1, 1, EAGER)
    dense = op_latency.deployment_s(REPLAYS, (anchor,), Deployment())
    found = op_latency.deployment_s(REPLAYS, (anchor,), pruned)
    assert dense is not None
    assert found is not None
    assert found.value == pytest.approx(0.5 * EAGER)
    assert found.high / found.low > dense.high / dense.low


@given(st.floats(1e-5, 1), st.floats(1e-5, 1), st.integers(1, 64), st.sampled_from([1, 4, 8]))
def test_intervals_hold_their_value(work: float, whole: float, batch: int, at: int) -> None:
    replays = (replay(1, per_sample=work), replay(8, per_sample=work))
    anchor = op_latency.Anchor("eager", at, 1, whole)
    found = op_latency.latency_s(replays, (anchor,), "eager", batch, 1)
    assert found is not None
    assert 0 < found.low < found.value < found.high


def test_foresight_orders_seeds_by_prediction_and_takes_the_best_batch() -> None:
    ahead = Foresight(REPLAYS, ())
    seeds = [
        ({"runtime": "eager"}, Deployment()),
        ({"runtime": "onnxruntime"}, Deployment(runtime="onnxruntime")),
        ({"runtime": "other"}, Deployment(runtime="other")),
    ]
    ordered = ahead.order(seeds, (1,))
    assert [values["runtime"] for values, _ in ordered] == ["onnxruntime", "eager", "other"]
    assert ordered[0][1].startswith("initial, predicted")
    assert ordered[2][1] == "initial"
    (values, _), *_ = ahead.order(seeds[1:2], (1, 8))
    assert values["batch_size"] == 8  # the run's own overhead is shared


def test_without_replays_seeds_keep_their_order() -> None:
    seeds = [({"runtime": r}, Deployment(runtime=r)) for r in ("eager", "onnxruntime")]
    assert [v["runtime"] for v, _ in Foresight((), ()).order(seeds, (1,))] == [
        "eager",
        "onnxruntime",
    ]


def test_dense_seeds_stay_before_compressed_ones() -> None:
    pruned = Deployment(compress=(Step(name="prune", params={"macs_kept": 0.1}),))
    seeds = [({"runtime": "eager"}, Deployment()), ({"runtime": "eager", "prune": "prune"}, pruned)]
    ordered = Foresight(REPLAYS, ()).order(seeds, (1,))
    assert [len(values) for values, _ in ordered] == [1, 2]


def test_predicted_seeds_that_need_a_compiler_stand_apart() -> None:
    runtimes = ("eager", "compiled", "onnxruntime", "aoti")
    seeds = [({"runtime": r}, Deployment(runtime=r)) for r in runtimes]
    others, dear = Foresight(REPLAYS, ()).apart(seeds, (1,))
    assert [values["runtime"] for values, _ in others] == ["onnxruntime", "eager"]
    assert {seed.values["runtime"] for seed in dear} == {"compiled", "aoti"}
    assert len({seed.predicted_s for seed in dear}) == 1
    assert all(seed.why.startswith("initial, predicted") for seed in dear)
    others, dear = Foresight((), ()).apart(seeds, (1,))
    assert [values["runtime"] for values, _ in others] == list(runtimes)
    assert not dear


def test_what_compresses_for_a_compiler_stands_apart_too() -> None:
    half = (Step(name="bf16"),)
    seeds = [
        ({"runtime": r, "precision": "bf16"}, Deployment(runtime=r, compress=half))
        for r in ("eager", "compiled")
    ]
    others, dear = Foresight(REPLAYS, ()).apart(seeds, (1,))
    assert [values["runtime"] for values, _ in others] == ["eager"]
    assert [seed.values["runtime"] for seed in dear] == ["compiled"]


def test_quantizers_are_ordered_by_what_they_leave_and_openvino_goes_as_onnx_runtime() -> None:
    runtimes = {"int4_weights": "onnxruntime", "int8_dynamic": "onnxruntime"}
    runtimes |= {"int8_openvino": "openvino", "int8_static": "onnxruntime"}
    seeds = [
        ({"quantize": name}, Deployment(runtime=runtime, compress=(Step(name=name),)))
        for name, runtime in runtimes.items()
    ]
    ordered = Foresight(REPLAYS, ()).order(seeds, (1,))
    assert [values["quantize"] for values, _ in ordered] == [
        "int8_openvino",
        "int8_static",
        "int8_dynamic",
        "int4_weights",
    ]
    assert len({why for _, why in ordered[:2]}) == 1


def test_intervals_widen_with_the_distance_from_the_anchor() -> None:
    anchor = op_latency.Anchor("eager", 1, 1, EAGER)
    wide = []
    for batch in (1, 4, 8):
        found = op_latency.latency_s(REPLAYS, (anchor,), "eager", batch, 1)
        assert found is not None
        wide.append(found.high / found.low)
    assert wide == sorted(wide)
    assert wide[0] < wide[-1]
