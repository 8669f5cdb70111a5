"""The ``openvino`` form: ``model.xml`` and ``model.bin``, converted from the ONNX file.

Weights stay in fp32 as they are; what a machine computes in is the runtime's affair.
"""

from pathlib import Path
from typing import Any

from autotune.errors import JobError
from autotune.forms.exported import last_line, quiet
from autotune.forms.onnx_file import MODEL as ONNX

MODEL = "model.xml"


def convert(source: Path, out: Path) -> None:
    """Write ``out``/`MODEL` from the ONNX file in ``source``.

    Raises:
        JobError: unsupported, with the converter's last line.
    """
    import openvino

    try:
        with quiet():
            save(openvino.convert_model(str(source / ONNX)), out / MODEL)
    except Exception as error:
        raise JobError(
            "unsupported", f"OpenVINO cannot convert this model: {last_line(error)}"
        ) from error


def save(model: Any, path: Path) -> None:
    """Write a model of OpenVINO's with its weights as they are."""
    import openvino

    openvino.save_model(model, str(path), compress_to_fp16=False)
