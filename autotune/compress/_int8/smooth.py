"""SmoothQuant: outlier channels of activations are scaled down, and their weights up.

    x ──────────── MatMul w        x ── Mul 1/s ── MatMul s*w
    one channel 80 times the rest  all channels of similar size; the product is the same

All channels of an activation share one range, so a few large ones leave the others few of its 256
levels, as in transformers (Xiao et al., arXiv 2211.10438).  The scale of a channel is
``sqrt(largest activation / largest weight)``.  Only inputs whose largest channel is many times the
median are scaled, as the Mul costs some microseconds per call.  (A per-channel scale in
QuantizeLinear needs no Mul but ran 50 to 100 times slower.)  The Mul goes before a Relu, which
commutes with positive factors: after it, ONNX Runtime would fuse the Relu with the product before
it in fp32 and not run that product in int8 (400 us instead of 80 for an MLP).
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from autotune.compress._int8.calibrate import session_of

_OUTLIER = 8.0  # largest channel over the median


def smooth(
    source: str, target: str, batches: Iterator[Mapping[str, Any]], kept: Collection[str]
) -> bool:
    """Write the scaled graph to ``target``; False, and nothing written, without outliers.

    Args:
        source: the prepared graph.
        target: where the scaled one goes.
        batches: calibration rows.
        kept: names of nodes that stay in fp32.
    """
    import onnx

    model = onnx.load(source)
    groups = _groups(model.graph, kept)
    if not groups:
        return False
    largest = _largest(model, list(groups), batches)
    before: dict[str, Any] = {}
    for name, nodes in groups.items():
        channels = largest.get(name)
        if channels is None or not _has_outliers(channels):
            continue
        weights = [_weight(model.graph, node) for node in nodes]
        if any(len(weight) != len(channels) for weight in weights):
            continue
        strong = np.max([np.abs(weight).max(1) for weight in weights], axis=0)
        scale = np.sqrt(np.maximum(channels, 1e-5) / np.maximum(strong, 1e-5)).astype(np.float32)
        scaling, first = _scale(model.graph, name, nodes, weights, scale)
        before[first] = scaling
    if not before:
        return False
    ordered: list[Any] = []
    for node in model.graph.node:
        ordered += [before[node.name]] if node.name in before else []
        ordered.append(type(node).FromString(node.SerializeToString()))
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    onnx.save(model, target)
    return True


def _groups(graph: Any, kept: Collection[str]) -> dict[str, list[Any]]:
    """Products with constant weights, by the activation that they read."""
    held = {value.name: len(value.dims) for value in graph.initializer}
    found: dict[str, list[Any]] = {}
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.name in kept:
            continue
        if (
            held.get(node.input[1]) == 2
            and node.input[0] not in held
            and not _transposed(node, "transA")
        ):
            found.setdefault(node.input[0], []).append(node)
    return found


def _transposed(node: Any, name: str) -> bool:
    return any(a.name == name and a.i for a in node.attribute)


def _largest(model: Any, names: list[str], batches: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
    """The largest magnitude of each channel, the last axis."""
    import onnx

    watched = type(model).FromString(model.SerializeToString())
    given = {value.name for value in model.graph.input}
    shown = {value.name for value in model.graph.output}
    more = [name for name in names if name not in given | shown]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in more)
    session = session_of(watched)
    asked = [name for name in names if name not in given]
    found: dict[str, Any] = {}
    for batch in batches:
        feed = {name: array for name, array in batch.items() if name in given}
        seen = dict(zip(asked, session.run(asked, feed), strict=True)) if asked else {}
        for name, array in (*seen.items(), *((n, feed[n]) for n in names if n in feed)):
            here = np.abs(array.reshape(-1, array.shape[-1])).max(0)
            found[name] = here if name not in found else np.maximum(found[name], here)
    return found


def _has_outliers(channels: Any) -> bool:
    middle = float(np.median(channels))
    return middle > 0 and float(channels.max()) > _OUTLIER * middle


def _weight(graph: Any, node: Any) -> Any:
    """The weight as ``[input channels, output channels]``."""
    from onnx import numpy_helper

    held = next(value for value in graph.initializer if value.name == node.input[1])
    weight = numpy_helper.to_array(held)
    return weight.T if _transposed(node, "transB") else weight


def _scale(graph: Any, name: str, nodes: list[Any], weights: list[Any], scale: Any) -> Any:
    """Point the nodes at the scaled activation and weights; returns the Mul node, and the name of
    the node that it goes before.
    """
    from onnx import helper, numpy_helper

    relu = _relu(graph, name, nodes)
    source = relu.input[0] if relu is not None else name
    made = f"{source}_smoothed"
    by = f"{made}_by"  # not "_scale": the quantizer gives that name to its own
    graph.initializer.append(numpy_helper.from_array(1 / scale, by))
    for node, weight in zip(nodes, weights, strict=True):
        scaled = weight * scale[:, None]
        scaled = np.ascontiguousarray(scaled.T if _transposed(node, "transB") else scaled)
        held = f"{node.input[1]}_{node.name}_smoothed"
        graph.initializer.append(numpy_helper.from_array(scaled, held))
        node.input[1] = held
        if relu is None:
            node.input[0] = made
    if relu is not None:
        relu.input[0] = made
    used = {each for node in graph.node for each in node.input}
    left = [value for value in graph.initializer if value.name in used or "_smoothed" in value.name]
    copies = [type(value).FromString(value.SerializeToString()) for value in left]
    del graph.initializer[:]
    graph.initializer.extend(copies)
    first = relu if relu is not None else nodes[0]
    return helper.make_node("Mul", [source, by], [made], name=f"{made}_mul"), first.name


def _relu(graph: Any, name: str, nodes: list[Any]) -> Any:
    """The Relu that makes an activation which only these nodes read; else None."""
    own = {node.name for node in nodes}
    shown = {value.name for value in graph.output}
    others = [n for n in graph.node if name in n.input and n.name not in own]
    made_by = [n for n in graph.node if n.op_type == "Relu" and name in n.output]
    alone = made_by and made_by[0].name and not others and name not in shown
    return made_by[0] if alone else None
