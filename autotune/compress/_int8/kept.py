"""Which nodes of a graph belong to modules that the user keeps in fp32 (``--keep-fp32``).

A node belongs to the module named in its metadata (`forms.MODULE`), or whose weights it reads: a
convolution with a batch norm folded into it is named after the norm.  Preparing the graph may fuse
nodes and drop the metadata, but keeps the names of their outputs.
"""

from typing import Any

from autotune import patterns
from autotune.forms import MODULE


def nodes(original: str, prepared: str, kept: str) -> list[str]:
    """Names of the prepared graph's nodes that stay as they are.

    Args:
        original: the exported file, with metadata.
        prepared: the file that is quantized.
        kept: names of modules, separated by commas, as `patterns.matches` reads them.
    """
    if not kept:
        return []
    import onnx

    wanted = tuple(kept.split(","))
    graph = onnx.load(original, load_external_data=False).graph
    weights = {value.name for value in graph.initializer}
    made = {
        output
        for node in graph.node
        for output in node.output
        if patterns.matches(_module(node), wanted)
        or any(patterns.matches(_owner(name), wanted) for name in node.input if name in weights)
    }
    prepared_graph = onnx.load(prepared, load_external_data=False).graph
    found = [node.name for node in prepared_graph.node if made & set(node.output)]
    # the dynamic quantizer splits a Gemm first, and looks for the names of the halves
    return [*found, *(f"{name}_MatMul" for name in found)]


def _module(node: Any) -> str:
    return next((note.value for note in node.metadata_props if note.key == MODULE), "")


def _owner(weight: str) -> str:
    """``head.0`` for ``model.head.0.weight``."""
    return weight.removeprefix("model.").rpartition(".")[0]
