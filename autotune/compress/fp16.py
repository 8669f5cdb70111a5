"""fp16: the module computes in half precision on a GPU.

Not for CPUs: PyTorch's CPU kernels convert to fp32 and back.  Values over 65,504 overflow, so bf16
is safer where both are fast.
"""

from autotune.compress import CompressTools, _half, _paths
from autotune.forms import Form
from autotune.records.job import Context
from autotune.records.plan import Value
from autotune.records.task import Dim

TAKES = "module"
GIVES = "module"
GROUP = "precision"
DTYPE = "fp16"
RUNTIMES = ("cuda_eager", "cuda_graphs", "cuda_compiled", "tensorrt")


def unavailable(context: Context) -> str | None:
    """Only on a GPU whose fp16 product was measured to be faster than that of fp32."""
    return _paths.fp16(context.profile)


def dims(context: Context) -> tuple[Dim, ...]:
    """None: there is one fp16."""
    del context
    return ()


def apply(form: Form, params: dict[str, Value], tools: CompressTools) -> Form:
    """Store the weights in fp16, and have the runtime compute in it.

    Raises:
        JobError: unsupported: a weight overflows fp16.
    """
    return _half.halve(form, tools, "fp16", params)
