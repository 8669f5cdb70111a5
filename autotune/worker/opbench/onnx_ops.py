"""An operator and what is fused into it as an ONNX Runtime session, built by hand: an export
would take seconds.

    [convolution, batch norm, relu] --nodes--> x -> chain 1 (weights 1) -> y1
                                                `-> chain 2 (weights 2) -> y2 ...

A session holds several copies of the same chain, each with weights of its own: they are read
from where the weights of a whole model are read from, and the overhead of a run is shared.

What this does not know: operators that are not in `_NODES`, and how blocked layouts are changed
between the operators of a whole model.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from math import prod, sqrt
from typing import Any

import numpy as np
import torch

from autotune.worker.survey.op_trace import Cell, Played, Spec

_NEEDS = ("onnx", "onnxruntime")
_OPSET, _IR = 20, 10
_MOST_BYTES = 64 << 20
"""Of the operands of all copies together."""


class _Graph:
    """Nodes, weights and inputs of some copies of a chain."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.feed: dict[str, Any] = {}
        self.copy = 0
        self.shape: tuple[int, ...] = ()
        """Of the first operator's result, where it is not as in the tape."""
        self._count = 0

    def node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add one; the name of its output."""
        from onnx import helper

        self._count += 1
        out = f"y{self._count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def weight(self, array: Any) -> str:
        """A constant of its own."""
        from onnx import numpy_helper

        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def given(self, name: str, shape: Sequence[int], dtype: Any = np.float32, most: int = 0) -> str:
        """An input, shared by every copy that asks for this name."""
        if name not in self.feed:
            rng = np.random.default_rng(0)
            whole = dtype != np.float32
            self.feed[name] = (
                rng.integers(0, most + 1, tuple(shape)).astype(dtype)
                if whole
                else rng.uniform(0.1, 1.0, tuple(shape)).astype(dtype)
            )
        return name

    def operand(self, spec: Spec, name: str, shape: Sequence[int] | None = None) -> str:
        """A weight of this copy, or an input."""
        shape = spec.shape if shape is None else shape
        if spec.parameter:  # not two alike: the same values are packed once
            array = np.random.default_rng(len(self.weights)).uniform(0.1, 1.0, tuple(shape))
            return self.weight(array.astype(np.float32))
        if spec.dtype.is_floating_point:
            return self.given(name, shape)
        return self.given(name, shape, np.int64, spec.most or 0)


Chain = Sequence[Played]
Call = Callable[[], object]


def follows(one: Played) -> bool:
    """Whether it can be fused into the heavy operator before it."""
    return _plain(one) in ("add", "batch_norm", *_ACTIVATIONS)


def chain(played: Chain, deep: bool, copies: int, threads: int) -> Call | None:
    """``copies`` of the first operator and its followers, one after the other; None where there
    is no like operator.  ``deep``: the rows of a matrix product have more than one dimension.
    """
    if not _usable(played[0]):
        return None
    graph, last = _Graph(), None
    for graph.copy in range(copies):
        last = _head(graph, played[0], deep)
        if last is None:
            return None
        for one in played[1:]:
            last = _follower(graph, one, last)
    assert last is not None
    return _session(graph, last, threads)


def cell(found: Cell, copies: int, threads: int) -> Call | None:
    """A recurrent layer, whose steps a tape may hold one by one."""
    if any(find_spec(name) is None for name in _NEEDS) or found.kind not in ("LSTM", "GRU"):
        return None
    graph, last = _Graph(), None
    gates = 4 if found.kind == "LSTM" else 3
    for graph.copy in range(copies):
        last = graph.given("x", found.shape)
        if found.batch_first:
            last = graph.node("Transpose", [last], perm=[1, 0, 2])
        size = found.shape[-1]
        for _ in range(found.layers):
            sides = [(gates * found.hidden, size), (gates * found.hidden, found.hidden)]
            rng = np.random.default_rng(len(graph.weights))
            arrays = [rng.uniform(-0.1, 0.1, (1, *side)) for side in sides]
            arrays.append(np.zeros((1, 2 * gates * found.hidden)))
            names = [graph.weight(array.astype(np.float32)) for array in arrays]
            extra = {"linear_before_reset": 1} if found.kind == "GRU" else {}
            last = graph.node(found.kind, [last, *names], hidden_size=found.hidden, **extra)
            axis = graph.weight(np.array([1], np.int64))
            last = graph.node("Squeeze", [last, axis])
            size = found.hidden
        if found.batch_first:
            last = graph.node("Transpose", [last], perm=[1, 0, 2])
    assert last is not None
    return _session(graph, last, threads)


@cache
def overhead_s(threads: int) -> float:
    """Seconds of a session's run that does nothing."""
    import time

    graph = _Graph()
    call = _session(graph, graph.node("Identity", [graph.given("x", (1, 4))]), threads)
    assert call is not None
    spent = []
    for _ in range(200):
        started = time.perf_counter()
        call()
        spent.append(time.perf_counter() - started)
    return sorted(spent)[len(spent) // 2]


# -- operators -----------------------------------------------------------------------------


def _usable(one: Played) -> bool:
    if any(find_spec(name) is None for name in _NEEDS):
        return False
    floats = all(s.dtype in (torch.float32, torch.int64) for s in one.operands)
    return floats and sum(s.bytes for s in (*one.operands, *one.made)) <= _MOST_BYTES


def _plain(one: Played) -> str:
    """Its name without the ways of writing it."""
    name = one.name.strip("_")
    return {"native_batch_norm": "batch_norm", "cudnn_batch_norm": "batch_norm"}.get(name, name)


def _head(graph: _Graph, one: Played, deep: bool) -> str | None:
    name = _plain(one)
    if name in ("addmm", "mm", "bmm"):
        return _product(graph, one, deep)
    if "attention" in name and len(one.args) >= 3 and isinstance(one.args[2], Spec):
        return _attention(graph, one)
    build = _NODES.get(name)
    if build is not None:
        return build(graph, one)
    if name in ("add", "mul", "sub", "div", *_ACTIVATIONS):
        # a copy without weights has an input of its own: like nodes of one input are made one
        first = next((s for s in one.operands if not s.parameter), None)
        if first is None:
            return None
        return _follower(graph, one, graph.given(f"x{graph.copy}", first.shape))
    return None


def _follower(graph: _Graph, one: Played, last: str) -> str:
    name = _plain(one)
    if name == "batch_norm":  # folded into the weights
        return last
    if name in _ACTIVATIONS:
        return _ACTIVATIONS[name](graph, last)
    kind = {"add": "Add", "mul": "Mul", "sub": "Sub", "div": "Div"}[name]
    others = one.operands[1:]
    if not others:
        return graph.node(kind, [last, graph.weight(np.float32(0.5))])
    other = others[0]
    shape = graph.shape if prod(graph.shape) == prod(other.shape) else other.shape
    return graph.node(kind, [last, graph.operand(other, f"z{graph.copy}", shape)])


def _product(graph: _Graph, one: Played, deep: bool) -> str:
    left, right = one.operands[-2:]
    shape = (1, *left.shape) if deep and len(left.shape) == 2 else left.shape
    graph.shape = (*shape[:-1], right.shape[-1])
    names = [graph.operand(left, "x", shape), graph.operand(right, f"r{graph.copy}")]
    if one.name != "addmm":
        return graph.node("MatMul", names)
    bias = graph.operand(one.operands[0], "b")
    if deep:
        return graph.node("Add", [graph.node("MatMul", names), bias])
    return graph.node("Gemm", [*names, bias])


def _convolution(graph: _Graph, one: Played) -> str | None:
    if one.args[6]:
        return None
    stride, padding, dilation = one.args[3:6]
    bias = np.zeros(one.args[1].shape[0], np.float32)
    inputs = [graph.operand(one.args[0], "x"), graph.operand(one.args[1], "w"), graph.weight(bias)]
    return graph.node(
        "Conv",
        inputs,
        strides=list(stride),
        pads=list(padding) * 2,
        dilations=list(dilation),
        group=one.args[8],
    )


def _attention(graph: _Graph, one: Played) -> str:
    """As it is exported: heads are moved, both sides scaled, a mask added, the result moved."""
    query, key, value = one.args[:3]
    causal = any(a is True for a in (*one.args, *one.kwargs.values()))
    q, k, v = (
        _heads(graph, spec, f"{name}{graph.copy}", perm)
        for spec, name, perm in (
            (query, "q", (0, 2, 1, 3)),
            (key, "k", (0, 2, 3, 1)),
            (value, "v", (0, 2, 1, 3)),
        )
    )
    scale = np.float32(1 / sqrt(sqrt(query.shape[-1])))
    q, k = (graph.node("Mul", [side, graph.weight(scale)]) for side in (q, k))
    score = graph.node("MatMul", [q, k])
    if causal:
        mask = np.triu(np.full((query.shape[2], key.shape[2]), -1e9, np.float32), 1)
        score = graph.node("Add", [score, graph.weight(mask)])
    out = graph.node("MatMul", [graph.node("Softmax", [score], axis=-1), v])
    return graph.node("Transpose", [out], perm=[0, 2, 1, 3])


def _heads(graph: _Graph, spec: Spec, name: str, perm: tuple[int, ...]) -> str:
    rows, heads, length, width = spec.shape
    return graph.node("Transpose", [graph.given(name, (rows, length, heads, width))], perm=perm)


def _layer_norm(graph: _Graph, one: Played) -> str:
    x = graph.given(f"x{graph.copy}", one.operands[0].shape)
    scales = [graph.operand(s, "s") for s in one.operands[1:3]]
    while len(scales) < 2:
        scales.append(graph.weight(np.ones(one.operands[0].shape[-1], np.float32)))
    return graph.node("LayerNormalization", [x, *scales], axis=-1)


def _group_norm(graph: _Graph, one: Played) -> str:
    """As it is exported: instances of a reshaped input, then scale and shift."""
    source, groups = one.operands[0], int(one.args[6])
    rows, channels = source.shape[:2]
    x = graph.given(f"x{graph.copy}", source.shape)
    to = graph.weight(np.array([rows, groups, -1], np.int64))
    flat = graph.node("Reshape", [x, to])
    ones = [graph.weight(np.ones(groups, np.float32)) for _ in range(2)]
    normal = graph.node("InstanceNormalization", [flat, *ones])
    back = graph.node("Reshape", [normal, graph.weight(np.array(source.shape, np.int64))])
    side = (channels, *(1 for _ in source.shape[2:]))
    scaled = graph.node("Mul", [back, graph.weight(np.full(side, 1.1, np.float32))])
    return graph.node("Add", [scaled, graph.weight(np.full(side, 0.1, np.float32))])


def _softmax(graph: _Graph, one: Played) -> str:
    x = graph.given(f"x{graph.copy}", one.operands[0].shape)
    return graph.node("Softmax", [x], axis=int(one.args[1]))


def _pooled(graph: _Graph, one: Played) -> str:
    x = graph.given(f"x{graph.copy}", one.operands[0].shape)
    kernel = list(one.args[1])
    stride = list(one.args[2]) if len(one.args) > 2 and one.args[2] else kernel
    padding = list(one.args[3]) if len(one.args) > 3 else [0, 0]
    return graph.node("MaxPool", [x], kernel_shape=kernel, strides=stride, pads=padding * 2)


def _mean(graph: _Graph, one: Played) -> str:
    x = graph.given(f"x{graph.copy}", one.operands[0].shape)
    axes = one.args[1] if len(one.args) > 1 and one.args[1] is not None else [-1]
    return graph.node("ReduceMean", [x, graph.weight(np.array(axes, np.int64))])


def _embedding(graph: _Graph, one: Played) -> str:
    table, index = one.operands[:2]
    shared = graph.weight if not graph.copy else None  # tables are large: all copies read one
    if shared is not None:
        shared(np.ones(table.shape, np.float32))
    return graph.node("Gather", ["w0", graph.operand(index, f"x{graph.copy}")])


def _node(kind: str) -> Callable[[_Graph, str], str]:
    return lambda graph, last: graph.node(kind, [last])


def _clip(graph: _Graph, last: str) -> str:
    ends = [graph.weight(np.float32(end)) for end in (0, 6)]
    return graph.node("Clip", [last, *ends])


def _silu(graph: _Graph, last: str) -> str:
    return graph.node("Mul", [last, graph.node("Sigmoid", [last])])


_ACTIVATIONS: Mapping[str, Callable[[_Graph, str], str]] = {
    "relu": _node("Relu"),
    "sigmoid": _node("Sigmoid"),
    "tanh": _node("Tanh"),
    "gelu": _node("Gelu"),
    "hardswish": _node("HardSwish"),
    "hardtanh": _clip,
    "clamp": _clip,
    "silu": _silu,
}
_NODES: Mapping[str, Callable[[_Graph, Played], str | None]] = {
    "convolution": _convolution,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "softmax": _softmax,
    "max_pool2d_with_indices": _pooled,
    "mean": _mean,
    "embedding": _embedding,
}


def _session(graph: _Graph, last: str, threads: int) -> Call | None:
    import onnxruntime as ort
    from onnx import TensorProto, helper

    ins = [
        helper.make_tensor_value_info(
            name,
            TensorProto.FLOAT if array.dtype == np.float32 else TensorProto.INT64,
            list(array.shape),
        )
        for name, array in graph.feed.items()
    ]
    outs = [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)]
    made = helper.make_graph(graph.nodes, "chain", ins, outs, graph.weights)
    opset = helper.make_opsetid("", _OPSET)
    model = helper.make_model(made, opset_imports=[opset], ir_version=_IR)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception:  # its own kinds of errors have no common base: it cannot be built like this
        return None
    feed = graph.feed
    return lambda: session.run(None, feed)
