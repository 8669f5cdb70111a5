"""Dynamic int8: weights of matrix products in 8 bits, activations quantized call by call.

Needs no calibration; reaches Linear layers only.
"""

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

_MATRIX = ("Linear", "MultiheadAttention", "Conv1D")  # Conv1D: transformers' name for a Linear


def unavailable(context: Context) -> str | None:
    """Needs the onnx extra and at least one Linear layer."""
    if find_spec("onnxruntime") is None or find_spec("onnx") is None:
        return "needs `pip install autotune[onnx]`"
    types = context.traits.module_types
    if not any(name.endswith("Linear") or name in _MATRIX for name in types):
        return "the model has no Linear layer, the only kind that dynamic int8 reaches"
    return None


def dims(context: Context) -> tuple[Dim, ...]:
    """``reduce_range`` is decided by the processor, and stands in the plan."""
    return (_int8.reduce_range(context),)


def apply(form: Form, params: dict[str, Value], tools: Tools) -> Form:
    """Quantize ``model.onnx``.

    Raises:
        JobError: unsupported.
    """

    def quantize(source: str, target: str, shared: dict[str, Any]) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        options: dict[str, Any] = {"MatMulConstBOnly": True}
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
            extra_options=options,
            **shared,
        )

    return _int8.run(form, tools, params, quantize)
