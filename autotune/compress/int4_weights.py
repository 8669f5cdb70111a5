"""Weight-only int4 for ONNX Runtime: the weights of matrix products in blocks of 4 bits.

    Gemm -> MatMul + Add, then MatMul -> MatMulNBits: blocks along the depth, a scale each

The kernel quantizes activations to 8 bits in each call.  The gain is size, an eighth of fp32 and
half of int8, and with it the time of products that are bound by reading their weights.
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
DTYPE = "int4"
TIME_LEFT = 0.9
"""0.86 to 1.0 was measured at batch 1 on four models (x86-64, 2 cores)."""
RUNTIMES = ("onnxruntime",)

_IN_INT8 = 4  # ONNX Runtime's accuracy level at which the kernel multiplies in int8


def unavailable(context: Context) -> str | None:
    """Needs the onnx extra and at least one Linear layer."""
    if find_spec("onnxruntime") is None or find_spec("onnx") is None:
        return install_hint("onnx")
    if not _int8.linear(context):
        return "the model has no Linear layer, the only kind that 4-bit weights reach"
    return None


def dims(context: Context) -> tuple[Dim, ...]:
    """``block``: weights per scale; smaller blocks are more accurate and a little larger."""
    del context
    return (Dim(name="block", kind="choice", choices=(32, 128)),)


def apply(form: Form, params: dict[str, Value], tools: CompressTools) -> Form:
    """Quantize ``model.onnx``.

    Raises:
        JobError: unsupported.
    """

    def quantize(source: str, target: str, shared: dict[str, Any]) -> None:
        import onnx
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
        from onnxruntime.quantization.onnx_model import ONNXModel

        model = ONNXModel(onnx.load(source))
        model.replace_gemm_with_matmul()
        quantizer = MatMulNBitsQuantizer(
            model.model,
            block_size=int(params.get("block", 32)),
            is_symmetric=False,
            accuracy_level=_IN_INT8,
            nodes_to_exclude=shared["nodes_to_exclude"],
        )
        quantizer.process()
        if not any(node.op_type == "MatMulNBits" for node in quantizer.model.model.graph.node):
            raise ValueError("no matrix product has constant weights")
        quantizer.model.save_model_to_file(target, False)

    return _int8.run(form, tools, params, quantize)
