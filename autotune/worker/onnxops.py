"""One operator as an ONNX Runtime session, built by hand: an export would take seconds.

single(played, threads) -> call, or None where there is no like operator
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from autotune.worker.tape import Played, Spec

_NEEDS = ("onnx", "onnxruntime")


def single(one: Played, threads: int) -> Callable[[], object] | None:
    """The heavy operator ``one`` in ONNX Runtime; weights are constants, as in a model."""
    if any(find_spec(name) is None for name in _NEEDS):
        return None
    name = one.name
    if name in ("addmm", "mm", "bmm"):
        left, right = one.operands[-2:]
        return _run(_product(left, right), {"x": left, "w": right}, right.parameter, threads)
    if name == "convolution" and not one.args[6]:
        return _run(_convolution(one), {"x": one.args[0], "w": one.args[1]}, True, threads)
    if "attention" in name and len(one.args) >= 3 and isinstance(one.args[2], Spec):
        query, key, value = one.args[:3]
        return _run(_attention(), {"x": query, "w": key, "v": value}, False, threads)
    return None


@cache
def overhead_s(threads: int) -> float:
    """Seconds of a session's run that does nothing."""
    import time

    from onnx import helper

    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    call = _session(nodes, {"x": np.ones((1, 4), np.float32)}, {}, threads)
    spent = []
    for _ in range(200):
        started = time.perf_counter()
        call()
        spent.append(time.perf_counter() - started)
    return sorted(spent)[len(spent) // 2]


def _product(left: Spec, right: Spec) -> list[Any]:
    from onnx import helper

    del left, right
    return [helper.make_node("MatMul", ["x", "w"], ["y"])]


def _convolution(one: Played) -> list[Any]:
    from onnx import helper

    stride, padding, dilation = one.args[3:6]
    return [
        helper.make_node(
            "Conv",
            ["x", "w"],
            ["y"],
            strides=list(stride),
            pads=list(padding) * 2,
            dilations=list(dilation),
            group=one.args[8],
        )
    ]


def _attention() -> list[Any]:
    """As it is exported: two products and a softmax."""
    from onnx import helper

    return [
        helper.make_node("Transpose", ["w"], ["t"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["x", "t"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["y"]),
    ]


def _run(
    nodes: list[Any], operands: dict[str, Spec], constant: bool, threads: int
) -> Callable[[], object] | None:
    if any(str(spec.dtype) != "torch.float32" for spec in operands.values()):
        return None
    arrays = {name: _array(spec) for name, spec in operands.items()}
    weights = {"w": arrays.pop("w")} if constant else {}
    return _session(nodes, arrays, weights, threads)


def _array(spec: Spec) -> Any:
    return np.random.default_rng(0).uniform(0.1, 1.0, spec.shape).astype(np.float32)


def _session(
    nodes: list[Any], feed: dict[str, Any], weights: dict[str, Any], threads: int
) -> Callable[[], object]:
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    kind = TensorProto.FLOAT
    ins = [helper.make_tensor_value_info(n, kind, list(a.shape)) for n, a in feed.items()]
    outs = [helper.make_tensor_value_info("y", kind, None)]
    held = [numpy_helper.from_array(a, n) for n, a in weights.items()]
    graph = helper.make_graph(nodes, "single", ins, outs, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, feed)
