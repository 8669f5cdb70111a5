"""The ``onnx`` form: one ``model.onnx``, exported through torch.export.

The batch dimension is dynamic where the model allows it.  The exporter's stack traces, which
contain paths of the machine that it ran on, are removed.
Each node keeps the name of the module that it comes from (`MODULE`).
"""

import ast
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autotune.errors import JobError
from autotune.forms import MODULE, _attention
from autotune.forms.exported import dynamic_shapes, last_line, quiet
from autotune.forms.flat import Flat, plain_attention
from autotune.records.task import Dynamic

MODEL = "model.onnx"
_SCOPES = "pkg.torch.onnx.name_scopes"
_PROTOBUF_LIMIT = 2_000_000_000  # bytes; larger weights must lie in a file of their own


def export(
    model: Flat,
    inputs: Sequence[Tensor],
    path: Path,
    names: tuple[Sequence[str], Sequence[str]],
    *,
    dynamic: bool,
    ragged: bool = False,
    free: Sequence[Dynamic] = (),
) -> None:
    """Write ``path`` from a model in eval mode; ``names`` are those of inputs and outputs.

    Raises:
        JobError: unsupported, with the exporter's last line.
    """
    big = sum(p.numel() * p.element_size() for p in model.parameters()) >= _PROTOBUF_LIMIT
    try:
        with quiet(), plain_attention(), torch.no_grad():
            torch.onnx.export(
                model,
                tuple(inputs),
                str(path),
                input_names=list(names[0]),
                output_names=list(names[1]),
                dynamic_shapes=dynamic_shapes(
                    inputs, names[0], batch=dynamic, ragged=ragged, free=free
                ),
                dynamo=True,
                external_data=big,
                verbose=False,
            )
        _clean(path, big)
    except Exception as error:
        logging.getLogger(__name__).debug("onnx export failed", exc_info=True)
        raise JobError(
            "unsupported",
            f"ONNX export does not support this model: {last_line(error)}",
            never="onnx",
        ) from error


def check(
    model: Flat,
    path: Path,
    samples: Sequence[Sequence[Tensor]],
    names: tuple[Sequence[str], Sequence[str]],
) -> None:
    """Compare the file with the model at several sizes of its dynamic dimensions (rtol 1e-2,
    atol 1e-3); skipped where ONNX Runtime is not installed.

    Raises:
        JobError: unsupported: it fails or differs at one of them.
    """
    try:
        import onnxruntime as ort
    except ImportError:
        return
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    used = {value.name for value in session.get_inputs()}
    for inputs in samples:
        shapes = ", ".join(f"{n} {list(x.shape)}" for n, x in zip(names[0], inputs, strict=True))
        with plain_attention(), torch.no_grad():
            expected = model(*inputs)
        feed = {n: x.numpy() for n, x in zip(names[0], inputs, strict=True) if n in used}
        try:
            found = session.run(None, feed)
        except Exception as error:
            why = f"the exported model fails at {shapes}: {last_line(error)}"
            raise JobError("unsupported", why) from error
        same = (
            torch.from_numpy(b).shape == a.shape
            and torch.allclose(a, torch.from_numpy(b), rtol=1e-2, atol=1e-3)
            for a, b in zip(expected, found, strict=True)
        )
        if not all(same):
            raise JobError("unsupported", f"the exported model differs from yours at {shapes}")


def _clean(path: Path, big: bool) -> None:
    """Remove the exporter's metadata, simplify attention, and run ONNX's checker."""
    import onnx

    model = onnx.load(str(path), load_external_data=not big)
    _attention.make_plain(model.graph)
    for graph in (model.graph, *model.functions):
        _forget(graph)
    del model.metadata_props[:]
    onnx.save(model, str(path))
    onnx.checker.check_model(str(path) if big else model)


def _forget(graph: Any) -> None:
    """Remove the metadata (except `MODULE`) of a graph or function and its subgraphs."""
    del graph.metadata_props[:]
    graph.doc_string = ""
    for field in ("input", "output", "value_info", "initializer"):
        for value in getattr(graph, field, ()):
            if hasattr(value, "metadata_props"):
                del value.metadata_props[:]
    for node in graph.node:
        scopes = [note.value for note in node.metadata_props if note.key == _SCOPES]
        del node.metadata_props[:]
        if scopes:  # from the outermost module to the innermost, then the operation
            name = ast.literal_eval(scopes[0])[-2].removeprefix("model.")  # Flat's attribute
            node.metadata_props.add(key=MODULE, value="" if name == "model" else name)
        node.doc_string = ""
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.ByteSize():
                    _forget(inner)
