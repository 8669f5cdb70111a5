"""Simplifies attention in an exported graph, so that runtimes recognise and fuse it.

    Where(IsNaN(p), 0, p),  p = Softmax(scores + mask)               -->   p
    Reshape(Transpose(Reshape(k, [-1, s, d]), [0, 2, 1]), [.., d, s])  -->   Transpose(k)

Guards: a softmax is NaN only in a row that is -inf throughout.  The exporter turns a mask of
booleans into 0 and the lowest finite number, and a mask that is known may keep a place in each
row: then the guard passes on what it gets, costs two passes over the attention, and hides the
attention from OpenVINO.  Products are taken to be finite, as those of a model whose answers are.
A mask that is computed as a float may be -inf throughout: its guard stays.

Turns: the exporter turns keys of any rank by way of three dimensions.  OpenVINO does not see
through that: it turns them back, and both are computed.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

_MOVES = ("Expand", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
"""Operators that only rearrange the elements of their first input."""
_PRODUCTS = ("MatMul", "Gemm", "Einsum")
_ROWS_TO_COLUMNS = [0, 2, 1]
Size = int | tuple[str, int]
"""Of one dimension: known, or the one of that value at that place."""


def make_plain(graph: Any) -> None:
    """Rewrite an ONNX graph in place."""
    drop_guards(graph)
    join_turns(graph)


def drop_guards(graph: Any) -> int:
    """Remove NaN guards that can never act; returns how many."""
    known = _Known(graph)
    outputs = {value.name for value in graph.output}
    passed = {
        node.output[0]: guarded
        for node in graph.node
        if (guarded := known.guarded(node)) is not None and node.output[0] not in outputs
    }
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = passed.get(name, name)
    _drop_unused(graph)
    return len(passed)


def join_turns(graph: Any) -> int:
    """Make one `Transpose` of each turn by way of three dimensions; how many there were."""
    from onnx import helper

    known = _Known(graph)
    turned = [(node, source) for node in graph.node if (source := known.turned(node)) is not None]
    for node, source in turned:
        rank = len(known.shape(source) or ())
        axes = [*range(rank - 2), rank - 1, rank - 2]
        node.op_type = "Transpose"
        del node.input[:], node.attribute[:]
        node.input.append(source)
        node.attribute.append(helper.make_attribute("perm", axes))
    _drop_unused(graph)
    return len(turned)


def _drop_unused(graph: Any) -> None:
    """Remove nodes whose outputs are not used."""
    used = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if used.intersection(node.output):
            kept.append(node)
            used.update(_taken(node))
    del graph.node[:]
    graph.node.extend(reversed(kept))


def _taken(node: Any) -> Iterator[str]:
    """Names that a node or a subgraph of it reads."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            yield from (value.name for value in inner.output)
            for one in inner.node:
                yield from _taken(one)


class _Known:
    """The producers of a graph's values, and what is known of the values."""

    def __init__(self, graph: Any) -> None:
        self._made = {name: node for node in graph.node for name in node.output}
        self._types = {value.name: value.type for value in (*graph.input, *graph.value_info)}
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

    def _maker(self, name: str, kind: str) -> Any:
        """The node that makes a value, where it is of this kind; else None."""
        node = self._made.get(name)
        return node if node is not None and node.op_type == kind else None

    # -- guards ----------------------------------------------------------------------------

    def guarded(self, node: Any) -> str | None:
        """The softmax that a node guards against a case that cannot come up; else None."""
        if node.op_type != "Where":
            return None
        asked, instead, given = node.input
        zero = self._constant(instead)
        if zero is None or zero.size != 1 or zero.item() != 0:
            return None
        asking, softmax = self._maker(asked, "IsNaN"), self._maker(given, "Softmax")
        if asking is None or asking.input[0] != given or softmax is None:
            return None
        last = all(a.i == -1 for a in softmax.attribute if a.name == "axis")
        return given if last and self._open(softmax.input[0]) else None

    def _open(self, name: str) -> bool:
        """Whether each row provably has a finite element."""
        if self._finite(name):
            return True
        values = self._constant(name)
        if values is not None:
            return bool(values.ndim and np.isfinite(values).any(axis=-1).all())
        node = self._maker(name, "Add")
        if node is None:
            return False
        one, other = node.input
        return (self._finite(one) and self._open(other)) or (
            self._finite(other) and self._open(one)
        )

    def _finite(self, name: str) -> bool:
        """Whether all elements are provably finite, if products are."""
        values = self._constant(name)
        if values is not None:
            return bool(np.isfinite(values).all())
        node = self._made.get(name)
        if node is None:
            return False
        if node.op_type in _PRODUCTS:
            return True
        if node.op_type in _MOVES:
            return self._finite(node.input[0])
        numbers = node.input[1:] if node.op_type == "Where" else node.input
        return node.op_type in ("Where", "Add", "Mul") and all(map(self._finite, numbers))

    # -- turns -----------------------------------------------------------------------------

    def turned(self, node: Any) -> str | None:
        """The value whose last two axes a `Reshape` has swapped by way of three dimensions."""
        if node.op_type != "Reshape":
            return None
        turn = self._maker(node.input[0], "Transpose")
        if turn is None or list(turn.attribute[0].ints) != _ROWS_TO_COLUMNS:
            return None
        flat = self._maker(turn.input[0], "Reshape")
        shape = None if flat is None else self.shape(flat.input[0])
        if flat is None or shape is None or len(shape) < len(_ROWS_TO_COLUMNS):
            return None
        *front, rows, columns = shape
        same = self._sizes(flat.input[1]) == [-1, rows, columns]
        same = same and self._sizes(node.input[1]) == [*front, columns, rows]
        source: str = flat.input[0]
        return source if same else None

    def shape(self, name: str) -> list[Size] | None:
        """Of a value; None where not even its rank is known."""
        kind = self._types.get(name)
        if kind is None or not kind.tensor_type.HasField("shape"):
            return None
        sizes = [axis.dim_value for axis in kind.tensor_type.shape.dim]
        return [size or (name, place) for place, size in enumerate(sizes)]

    def _sizes(self, name: str) -> list[Size] | None:
        """The numbers of a vector of sizes; None where they are made in another way."""
        values = self._constant(name)
        if values is not None:
            return [int(value) for value in values.ravel()]
        node = self._made.get(name)
        if node is None:
            return None
        if node.op_type == "Shape":
            ends = {a.name: a.i for a in node.attribute}
            found = self.shape(node.input[0])
            return found and found[ends.get("start", 0) : ends.get("end", len(found))]
        if node.op_type == "Concat":
            parts = [self._sizes(part) for part in node.input]
            return None if None in parts else [size for part in parts for size in part or ()]
        if node.op_type == "Slice" and len(node.input) == 3:
            found, (start, end) = self._sizes(node.input[0]), map(self._constant, node.input[1:])
            if found is None or start is None or end is None:
                return None
            return found[start.item() : end.item()]
        return None
