"""Static int8 for ONNX Runtime (QDQ): weights and activations, ranges from calibration rows."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from autotune.compress import Tools, _int8
from autotune.forms import Form
from autotune.records.job import Context
from autotune.records.plan import Value
from autotune.records.task import Dim

TAKES = "onnx"
GIVES = "onnx"
GROUP = "quantize"

_BATCH = 16  # rows a calibration call: bounds the memory that recording activations takes


def unavailable(context: Context) -> str | None:
    """Needs the onnx extra."""
    del context
    if find_spec("onnxruntime") is None or find_spec("onnx") is None:
        return "needs `pip install autotune[onnx]`"
    return None


def dims(context: Context) -> tuple[Dim, ...]:
    """How ranges are found; the processor decides ``reduce_range``, and it stands in the plan."""
    method = Dim(name="method", kind="choice", choices=("percentile", "minmax"))
    return method, _int8.reduce_range(context)


def apply(form: Form, params: dict[str, Value], tools: Tools) -> Form:
    """Calibrate and quantize ``model.onnx``.

    Raises:
        JobError: unsupported, or there are no calibration rows.
    """

    def quantize(source: str, target: str, shared: dict[str, Any]) -> None:
        from onnxruntime.quantization import (
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )

        methods = {"minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}
        quantize_static(
            source,
            target,
            _reader(tools.calibration(form.about.batch_size or _BATCH), _int8.inputs(source)),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=methods[str(params.get("method", "percentile"))],
            **shared,
        )

    return _int8.run(form, tools, params, quantize)


def _reader(batches: Iterator[dict[str, Any]], used: set[str]) -> Any:
    """What ONNX Runtime asks for batch after batch."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            return batch and {name: a for name, a in batch.items() if name in used}

    return Reader()
