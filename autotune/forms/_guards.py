"""Takes out of an exported graph what guards attention against a case that cannot come up.

    Where(IsNaN(p), 0, p),  p = Softmax(scores + mask)   -->   p

A softmax is NaN only in a row that is -inf throughout.  The exporter turns a mask of booleans into
0 and the lowest finite number, and a mask that is known may keep a place in each row: then the
guard passes on what it gets, costs two passes over the attention, and hides the attention from
runtimes that fuse it (OpenVINO).  Products are taken to be finite, as those of a model whose
answers are.  A mask that is computed as a float may be -inf throughout: its guard stays.
"""

from typing import Any

import numpy as np

_MOVES = ("Expand", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
"""What only moves the numbers of its first input."""
_PRODUCTS = ("MatMul", "Gemm", "Einsum")


def remove(graph: Any) -> int:
    """Rewrite an ONNX graph in place; how many guards went."""
    known = _Known(graph)
    gone: dict[str, str] = {}
    used = [name for node in graph.node for name in node.input]
    used += [value.name for value in graph.output]
    for node in list(graph.node):
        guarded = known.guarded(node)
        if guarded is None or any(value.name == node.output[0] for value in graph.output):
            continue
        gone[node.output[0]] = guarded
        graph.node.remove(node)
        if used.count(node.input[0]) == 1:
            graph.node.remove(known.made[node.input[0]])
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = gone.get(name, name)
    return len(gone)


class _Known:
    """What a graph's values are made by, and what is known of them."""

    def __init__(self, graph: Any) -> None:
        self.made = {name: node for node in graph.node for name in node.output}
        self._held = {value.name: value for value in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._held[node.output[0]] = node.attribute[0].t

    def _constant(self, name: str) -> Any:
        """A constant as an array; None for what is none, or lies in a file of its own."""
        from onnx import TensorProto, numpy_helper

        value = self._held.get(name)
        if value is None or value.data_location == TensorProto.EXTERNAL:
            return None
        return numpy_helper.to_array(value)

    def guarded(self, node: Any) -> str | None:
        """The softmax that a node guards against a case that cannot come up; else None."""
        if node.op_type != "Where":
            return None
        asked, instead, given = node.input
        zero = self._constant(instead)
        if zero is None or zero.size != 1 or zero.item() != 0:
            return None
        asking, softmax = self.made.get(asked), self.made.get(given)
        if asking is None or asking.op_type != "IsNaN" or asking.input[0] != given:
            return None
        if softmax is None or softmax.op_type != "Softmax":
            return None
        last = all(a.i == -1 for a in softmax.attribute if a.name == "axis")
        return given if last and self._open(softmax.input[0]) else None

    def _open(self, name: str) -> bool:
        """Whether each row surely has a finite number."""
        if self._finite(name):
            return True
        values = self._constant(name)
        if values is not None:
            return bool(values.ndim and np.isfinite(values).any(axis=-1).all())
        node = self.made.get(name)
        if node is None or node.op_type != "Add":
            return False
        one, other = node.input
        return (self._finite(one) and self._open(other)) or (
            self._finite(other) and self._open(one)
        )

    def _finite(self, name: str) -> bool:
        """Whether all of it surely is finite, where products are."""
        values = self._constant(name)
        if values is not None:
            return bool(np.isfinite(values).all())
        node = self.made.get(name)
        if node is None:
            return False
        if node.op_type in _PRODUCTS:
            return True
        if node.op_type in _MOVES:
            return self._finite(node.input[0])
        numbers = node.input[1:] if node.op_type == "Where" else node.input
        return node.op_type in ("Where", "Add", "Mul") and all(map(self._finite, numbers))
