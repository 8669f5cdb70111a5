"""Dynamic int8: weights of matrix products in 8 bits, activations quantized in each call.

Needs no calibration; reaches Linear layers only.
"""

from importlib.util import find_spec
from typing import Any

from autotune.compress import CompressTools, _int8
from autotune.errors import install_hint
from autotune.forms import Form
from autotune.records.job import Context
from autotune.records.plan import Value
from autotune.records.task import Dim

TAKES = "onnx"
GIVES = "onnx"
GROUP = "quantize"
DTYPE = "int8"
TIME_LEFT = 0.55
"""Only Linear layers are quantized, and activation ranges are found in each call."""
RUNTIMES = ("onnxruntime",)


def unavailable(context: Context) -> str | None:
    """Needs the onnx extra, a Linear layer, and int8 products that were not measured as slower."""
    if find_spec("onnxruntime") is None or find_spec("onnx") is None:
        return install_hint("onnx")
    if not _int8.linear(context):
        return "the model has no Linear layer, the only kind that dynamic int8 reaches"
    return _int8.slower(context)


def dims(context: Context) -> tuple[Dim, ...]:
    """``per_tensor``: one scale per weight tensor instead of per output channel.
    ``reduce_range`` has one choice, which the CPU decides.
    """
    return (*_int8.per_tensor(context), _int8.reduce_range(context))


def apply(form: Form, params: dict[str, Value], tools: CompressTools) -> Form:
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
