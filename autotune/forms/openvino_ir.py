"""The ``openvino`` form: ``model.xml`` and ``model.bin``, converted from the ONNX file.

Weights stay in fp32; the runtime chooses the precision to compute in.  Metadata about the
machine that made the files is removed.  OpenVINO's own converter is not used: importing it
sends telemetry.
"""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune.errors import JobError
from autotune.forms import MODULE
from autotune.forms.exported import last_line, quiet
from autotune.forms.onnx_file import MODEL as ONNX

MODEL = "model.xml"
_SENDS = "openvino_telemetry"
_OF = ":"
_COUNTED = re.compile(r"[A-Z][A-Za-z]*_\d+")
_NOTES = {"fused_names_0", "can_be_folded"}


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Import openvino or nncf in this context: no telemetry, files in the home folder or output."""
    hidden = sys.modules.setdefault(_SENDS, None) is None  # type: ignore[arg-type]
    try:
        with quiet():
            yield
    finally:
        if hidden:
            del sys.modules[_SENDS]


def convert(source: Path, out: Path) -> None:
    """Write ``out``/`MODEL` from the ONNX file in ``source``.

    Raises:
        JobError: unsupported, with the converter's last line.
    """
    try:
        with silent():
            import openvino
            from openvino._offline_transformations import apply_moc_transformations

            model = openvino.Core().read_model(source / ONNX)
            _note_modules(model, source / ONNX)
            apply_moc_transformations(model, cf=False)  # what its own converter does
            save(model, out / MODEL)
    except Exception as error:
        raise JobError(
            "unsupported",
            f"OpenVINO cannot convert this model: {last_line(error)}",
            never="openvino",
        ) from error


def check(source: Path, out: Path, samples: Sequence[Sequence[Any]], names: Sequence[str]) -> None:
    """Compare the OpenVINO model with the ONNX one; skipped where ONNX Runtime is not installed.

    Args:
        source: the ONNX form's folder.
        out: the OpenVINO form's folder.
        samples: positional arrays, as many as ``names``.
        names: of the inputs.

    Raises:
        JobError: unsupported: it fails or differs.
    """
    try:
        import onnxruntime as ort
    except ImportError:
        return
    import numpy as np

    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(source / ONNX), options, providers=["CPUExecutionProvider"])
    used = {value.name for value in session.get_inputs()}
    try:
        with silent():
            run = runner(out / MODEL)
        for inputs in samples:
            fields = {n: np.asarray(x) for n, x in zip(names, inputs, strict=True) if n in used}
            for a, b in zip(session.run(None, fields), run(fields), strict=True):
                if a.shape != b.shape or not np.allclose(a, b, rtol=1e-2, atol=1e-3):
                    shapes = ", ".join(f"{n} {list(x.shape)}" for n, x in fields.items())
                    why = f"the model that OpenVINO made differs from yours at {shapes}"
                    raise JobError("unsupported", why)
    except RuntimeError as error:
        why = f"the model that OpenVINO made fails: {last_line(error)}"
        raise JobError("unsupported", why) from error


def runner(model: Any) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """run(fields) -> outputs, in fp32; ``model`` is a path or a model of OpenVINO's."""
    import openvino

    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ports = {name: port for port in compiled.inputs for name in port.get_names()}

    def run(fields: Mapping[str, Any]) -> tuple[Any, ...]:
        given = {ports[name]: value for name, value in fields.items() if name in ports}
        outputs: tuple[Any, ...] = compiled(given).to_tuple()
        return outputs

    return run


def save(model: Any, path: Path) -> None:
    """Write a model of OpenVINO's with its weights as they are, without notes on how and where
    it was made.  Numbered names (``Add_12``) are renumbered, so that equal models give equal files.
    """
    import openvino

    for key in list(model.get_rt_info()):
        del model.rt_info[key]
    model.set_friendly_name("model")
    for index, node in enumerate(model.get_ordered_ops()):
        kind, name = node.get_type_name(), node.get_friendly_name()
        for key in _NOTES & set(node.get_rt_info()):
            del node.rt_info[key]
        if _COUNTED.fullmatch(name):
            node.set_friendly_name(f"{kind}_{index}")
    openvino.save_model(model, str(path), compress_to_fp16=False)


def module_of(name: str) -> str:
    """The module that a node comes from, as ``named_modules`` names it; by the node's name."""
    return name.partition(_OF)[0] if _OF in name else ""


def _note_modules(model: Any, source: Path) -> None:
    """OpenVINO drops a node's metadata, so the name carries the module: ``head.0:node_linear``."""
    import onnx

    graph = onnx.load(str(source), load_external_data=False).graph
    modules = {
        name: note.value
        for node in graph.node
        for note in node.metadata_props
        if note.key == MODULE and note.value
        for name in (node.name, *node.output)
    }
    for node in model.get_ordered_ops():
        name = node.get_friendly_name()
        module = modules.get(name) or modules.get(name.partition("/")[0])
        if module and node.get_type_name() not in ("Parameter", "Result", "Constant"):
            node.set_friendly_name(f"{module}{_OF}{name}")
