"""Bias correction: a layer's bias is shifted by the mean error that rounding its weights causes.

    mean over calibration rows of (w - rounded w) x  --added to-->  the layer's bias

Rounding errors of weights do not average out over inputs that are all positive (Nagel et al., arXiv
1906.04721).  Each layer is corrected for its own weights with exact inputs: does not see the errors
of rounded inputs and of earlier layers.  Layers without a constant bias are left as they are.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from autotune.compress import _int8
from autotune.compress._int8.calibrate import session_of
from autotune.compress._int8.sensitive import rounded_weight


def correct(
    source: str,
    target: str,
    batches: Iterator[Mapping[str, Any]],
    kept: Collection[str],
    rounding: _int8.Rounding,
) -> bool:
    """Write the corrected graph to ``target``; False, and nothing written, where none has a bias.

    Args:
        source: the prepared graph.
        target: where the corrected one goes.
        batches: calibration rows.
        kept: names of nodes that stay in fp32.
        rounding: of the weights.
    """
    import onnx

    model = onnx.load(source)
    places = _places(model.graph, kept)
    if not places:
        return False
    means = _means(model, list(places), batches, rounding)
    held = {value.name: value for value in model.graph.initializer}
    for name, (node, place) in places.items():
        if name in means:
            bias = onnx.numpy_helper.to_array(held[node.input[place]])
            made = f"{name}_corrected_bias"
            node.input[place] = made
            found = (bias + means[name]).astype(bias.dtype)
            model.graph.initializer.append(onnx.numpy_helper.from_array(found, made))
    onnx.save(model, target)
    return True


def _places(graph: Any, kept: Collection[str]) -> dict[str, tuple[Any, int]]:
    """By layer, the node that adds its bias and the index of that input: the layer itself, or an
    Add that is the only reader of its output.
    """
    held = {value.name: len(value.dims) for value in graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: dict[str, tuple[Any, int]] = {}
    for node in graph.node:
        if node.op_type not in _int8.HEAVY or node.name in kept or node.input[1] not in held:
            continue
        if node.op_type == "MatMul":
            after = readers.get(node.output[0], [])
            added = [i for i in (0, 1) if after and held.get(after[0].input[i]) == 1]
            if len(after) == 1 and after[0].op_type == "Add" and added:
                found[node.name] = after[0], added[0]
        elif len(node.input) > 2 and held.get(node.input[2]) == 1 and _plain(node):
            found[node.name] = node, 2
    return found


def _plain(node: Any) -> bool:
    """Whether a Gemm adds its bias unscaled."""
    return all(a.f == 1.0 for a in node.attribute if a.name in ("alpha", "beta"))


def _means(
    model: Any, names: list[str], batches: Iterator[Mapping[str, Any]], rounding: _int8.Rounding
) -> dict[str, Any]:
    """By layer, the mean output error of rounding its weights, per output channel."""
    import onnx

    watched = type(model).FromString(model.SerializeToString())
    graph = watched.graph
    held = {value.name: value for value in graph.initializer}
    outputs: dict[str, str] = {}
    axes: dict[str, int] = {}
    for node in [n for n in graph.node if n.name in set(names)]:
        weight = onnx.numpy_helper.to_array(held[node.input[1]])
        lost = (weight - rounded_weight(node, held[node.input[1]], rounding)).astype(np.float32)
        twin = type(node).FromString(node.SerializeToString())
        del twin.input[2:]
        twin.name = outputs[node.name] = twin.output[0] = f"{node.name}_lost"
        twin.input[1] = f"{node.name}_lost_weight"
        graph.initializer.append(onnx.numpy_helper.from_array(lost, twin.input[1]))
        graph.node.append(twin)
        axes[node.name] = 1 if node.op_type == "Conv" else -1
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs.values())
    session = session_of(watched)
    given = {value.name for value in session.get_inputs()}
    sums: dict[str, Any] = dict.fromkeys(outputs, 0.0)
    counts = dict.fromkeys(outputs, 0)
    for batch in batches:
        feed = {name: array for name, array in batch.items() if name in given}
        for name, array in zip(outputs, session.run(list(outputs.values()), feed), strict=True):
            flat = np.moveaxis(array, axes[name], -1)
            flat = flat.reshape(-1, flat.shape[-1])
            sums[name] = sums[name] + flat.sum(0, dtype=np.float64)
            counts[name] += len(flat)
    return {name: sums[name] / count for name, count in counts.items() if count}
