"""The sensitivity of layers to int8: the order in which they are restored to fp32.

    graph + one switch per layer --rows, one switch on at a time--> output error per layer

One session serves all layers: where its switch is on, a layer sees its input and its weights
rounded to 8 bits, in fp32 arithmetic.  The error is the squared difference from the exact
model's outputs over their squared norm.  Does not see how errors add up: each layer is rounded
alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from autotune.compress import _int8
from autotune.compress._int8.calibrate import Range, session_of

_ROWS = 16
_FLOPS = 2e12  # FLOPs of the whole pass: some seconds
_SWITCHES = "autotune_switches"


def order(
    path: str,
    batches: Iterator[Mapping[str, Any]],
    nodes: Sequence[str],
    ranges: Mapping[str, Range],
    flops_per_row: float | None,
    rounding: _int8.Rounding,
) -> list[str]:
    """The names in ``nodes``, the most sensitive first; ties in the graph's order.

    Args:
        path: the prepared graph.
        batches: calibration rows.
        nodes: layers that are to be quantized.
        ranges: of their activations.
        flops_per_row: limits the number of rows.
        rounding: of the weights.
    """
    import onnx

    model = onnx.load(path)
    chosen = [node for node in model.graph.node if node.name in set(nodes)]
    _switched(model, chosen, ranges, rounding)
    session = session_of(model)
    cost = (flops_per_row or 0.0) * (len(chosen) + 1)
    rows = max(1, min(_ROWS, int(_FLOPS / cost) if cost else _ROWS))
    feed = _rows(batches, rows, {value.name for value in session.get_inputs()})

    def run(on: int | None) -> list[Any]:
        switches = np.zeros(len(chosen), bool)
        if on is not None:
            switches[on] = True
        return [np.asarray(o, float) for o in session.run(None, {**feed, _SWITCHES: switches})]

    exact = run(None)
    errors = [_error(run(i), exact) for i in range(len(chosen))]
    ranked = sorted(range(len(chosen)), key=lambda i: -errors[i])
    return [chosen[i].name for i in ranked]


def _rows(batches: Iterator[Mapping[str, Any]], rows: int, used: set[str]) -> dict[str, Any]:
    """The first rows, of one batch (which is one row where their shapes differ)."""
    first = next(batches)
    return {name: array[:rows] for name, array in first.items() if name in used}


def _error(found: Sequence[Any], exact: Sequence[Any]) -> float:
    return sum(
        float(np.square(a - b).sum() / max(np.square(b).sum(), 1e-30))
        for a, b in zip(found, exact, strict=True)
    )


def _switched(
    model: Any, chosen: Sequence[Any], ranges: Mapping[str, Range], rounding: _int8.Rounding
) -> None:
    """Give each chosen node a switch between its exact and its rounded inputs."""
    from onnx import TensorProto, helper

    graph = model.graph
    held = {value.name: value for value in graph.initializer}
    before: dict[str, list[Any]] = {}
    for number, node in enumerate(chosen):
        switch = f"{_SWITCHES}_{number}"
        _hold(graph, f"{switch}_at", np.array(number, np.int64))
        added = [helper.make_node("Gather", [_SWITCHES, f"{switch}_at"], [switch])]
        for place in (0, 1):
            name = node.input[place]
            rounded = f"{switch}_rounded_{place}"
            if name in held:
                _hold(graph, rounded, rounded_weight(node, held[name], rounding))
            elif name in ranges:
                added += _rounding(graph, name, rounded, ranges[name])
            else:
                continue
            out = f"{switch}_input_{place}"
            added.append(helper.make_node("Where", [switch, rounded, name], [out]))
            node.input[place] = out
        before[node.name] = added
    graph.input.append(helper.make_tensor_value_info(_SWITCHES, TensorProto.BOOL, [len(chosen)]))
    nodes = [each for node in graph.node for each in (*before.get(node.name, ()), node)]
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _hold(graph: Any, name: str, array: Any) -> None:
    from onnx import numpy_helper

    graph.initializer.append(numpy_helper.from_array(array, name))


def _rounding(graph: Any, name: str, out: str, span: Range) -> list[Any]:
    """Nodes that quantize a value to 8 bits and back."""
    from onnx import helper

    low, high = span
    scale = (high - low) / 255 or 1.0
    _hold(graph, f"{out}_scale", np.array(scale, np.float32))
    _hold(graph, f"{out}_zero", np.array(round(-low / scale), np.uint8))
    more = [f"{out}_scale", f"{out}_zero"]
    return [
        helper.make_node("QuantizeLinear", [name, *more], [f"{out}_q"]),
        helper.make_node("DequantizeLinear", [f"{out}_q", *more], [out]),
    ]


def rounded_weight(node: Any, value: Any, rounding: _int8.Rounding) -> Any:
    """A node's weight rounded to int8 levels, in fp32."""
    from onnx import numpy_helper

    weight = numpy_helper.to_array(value)
    if weight.ndim < 2 or not rounding.per_channel:
        axes: tuple[int, ...] = tuple(range(weight.ndim))
    else:
        axes = tuple(a for a in range(weight.ndim) if a != _int8.channel(node, weight.ndim))
    scale = np.abs(weight).max(axis=axes, keepdims=True) / rounding.levels
    scale = np.where(scale > 0, scale, 1.0)
    return (np.rint(weight / scale) * scale).astype(np.float32)
