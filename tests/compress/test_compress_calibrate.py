"""Ranges from histograms: exact ends, the rules' own cuts, and the order of sensitive layers."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from autotune.compress._int8 import Rounding, calibrate, sensitive, smooth
from autotune.errors import JobError

RNG = np.random.default_rng(0)
BULK = RNG.standard_normal(200_000).astype(np.float32)


def seen(*batches: np.ndarray) -> calibrate.Histogram:
    histogram = calibrate.Histogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


@pytest.mark.parametrize("rule", ["minmax", "percentile", "mse"])
def test_every_range_holds_zero_and_lies_within_what_was_seen(rule):
    for values in (BULK, np.abs(BULK) + 1, np.zeros(5, np.float32), -np.abs(BULK) - 1):
        low, high = seen(values).range(rule)
        assert min(0, values.min()) <= low <= 0 <= high <= max(0, values.max())


def test_a_later_batch_that_reaches_further_widens_the_bins_and_loses_no_count():
    one, two = seen(BULK, BULK * 37), seen(BULK * 37, BULK)
    for histogram in (one, two):
        assert histogram.range("minmax") == (
            pytest.approx(BULK.min() * 37),
            pytest.approx(BULK.max() * 37),
        )
    assert one.counts.sum() == two.counts.sum()
    assert one.range("percentile")[1] == pytest.approx(two.range("percentile")[1], rel=0.05)


def test_a_few_outliers_are_cut_by_all_rules_but_minmax():
    values = np.append(BULK, np.float32([60, -60]))
    highs = {rule: seen(values).range(rule)[1] for rule in calibrate._RULES}
    assert highs.pop("minmax") == 60
    assert highs["percentile"] < 5
    assert highs["mse"] < 50


def test_mse_has_the_least_error_of_the_rules():
    values = np.append(BULK, np.float32([20, -20] * 20))

    def error(rule: str) -> float:
        low, high = seen(values).range(rule)
        scale = (high - low) / 255
        rounded = np.clip(np.rint((values - low) / scale), 0, 255) * scale + low
        return float(np.square(rounded - values).mean())

    assert error("mse") <= min(error(rule) for rule in calibrate._RULES) * 1.02


def test_an_activation_that_is_not_finite_is_a_failure_with_its_kind():
    with pytest.raises(JobError) as found:
        seen(np.array([1, np.inf], np.float32))
    assert found.value.kind == "nan"


def chain(folder: Path, weights: list[np.ndarray]) -> str:
    """x0 -m0-> x1 -m1-> ...: products of constant weights."""
    last = len(weights)
    ends = [
        helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, ["n", weights[0].shape[0]])
        for i in (0, last)
    ]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"], name=f"m{i}")
            for i in range(last)
        ],
        "chain",
        ends[:1],
        ends[1:],
        [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    return str(folder / "model.onnx")


def answers(path: str, rows: np.ndarray) -> np.ndarray:
    found: np.ndarray = calibrate.session_of(onnx.load(path)).run(None, {"x0": rows})[0]
    return found


def test_an_outlying_channel_is_scaled_and_the_product_stays_the_same(tmp_path):
    path, target = chain(tmp_path, [np.eye(8, dtype=np.float32)]), str(tmp_path / "scaled.onnx")
    rows = RNG.standard_normal((16, 8)).astype(np.float32)
    assert not smooth.smooth(path, target, iter([{"x0": rows}]), ())
    rows[:, 3] *= 100
    assert not smooth.smooth(path, target, iter([{"x0": rows}]), ("m0",))
    assert smooth.smooth(path, target, iter([{"x0": rows}]), ())
    np.testing.assert_allclose(answers(target, rows), answers(path, rows), rtol=1e-5, atol=1e-5)
    seen = calibrate.collect(target, iter([{"x0": rows}]), ("MatMul",))
    low, high = seen["x0_smoothed"].range("minmax")
    assert max(-low, high) < 0.2 * np.abs(rows).max()


def test_before_a_relu_the_product_ahead_of_it_stays_one_that_int8_can_have(tmp_path):
    path = chain(tmp_path, [np.eye(8, dtype=np.float32)] * 2)
    model, target = onnx.load(path), str(tmp_path / "scaled.onnx")
    relu = helper.make_node("Relu", ["x1"], ["r1"], name="relu")
    model.graph.node[1].input[0] = "r1"
    model.graph.node.insert(1, relu)
    onnx.save(model, path)
    rows = np.abs(RNG.standard_normal((16, 8)).astype(np.float32))
    rows[:, 3] *= 100
    assert smooth.smooth(path, target, iter([{"x0": rows}]), ("m0",))
    nodes = onnx.load(target).graph.node
    assert [node.op_type for node in nodes] == ["MatMul", "Mul", "Relu", "MatMul"]
    np.testing.assert_allclose(answers(target, rows), answers(path, rows), rtol=1e-5, atol=1e-5)


def test_the_layer_with_an_outlier_comes_first(tmp_path):
    weights = [RNG.standard_normal((8, 8)).astype(np.float32) for _ in range(3)]
    path = chain(tmp_path, weights)
    rows = RNG.standard_normal((16, 8)).astype(np.float32)
    histograms = calibrate.collect(path, iter([{"x0": rows}]), ("MatMul",))
    ranges = {name: histogram.range("minmax") for name, histogram in histograms.items()}
    assert set(ranges) == {"x0", "x1", "x2", "x3"}
    ranges["x1"] = (-1e3, 1e3)  # as one huge value in it would make it
    names = ["m0", "m1", "m2"]
    order = sensitive.order(path, iter([{"x0": rows}]), names, ranges, None, Rounding())
    assert order[0] == "m1"
    assert sorted(order) == names


def test_one_scale_rounds_all_channels_of_a_weight_as_coarsely_as_its_largest(tmp_path):
    weight = RNG.standard_normal((8, 8)).astype(np.float32)
    weight[:, 5] *= 300
    graph = onnx.load(chain(tmp_path, [weight])).graph
    node, held = graph.node[0], {value.name: value for value in graph.initializer}

    def error(per_channel: bool) -> float:
        rounding = Rounding(per_channel=per_channel)
        found = sensitive.rounded_weight(node, held[node.input[1]], rounding)
        return float(np.abs(found - weight)[:, :5].max())

    assert error(per_channel=False) > 50 * error(per_channel=True)
