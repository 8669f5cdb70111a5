"""bf16: the module computes in bfloat16 where the CPU or GPU has instructions for it.

Half the bits of fp32 with all of its range: needs no calibration and hardly changes quality.
Inputs and outputs stay in fp32.
"""

from autotune.compress import CompressTools, _half, _paths
from autotune.forms import Form
from autotune.records.job import Context
from autotune.records.plan import Value
from autotune.records.task import Dim

TAKES = "module"
GIVES = "module"
GROUP = "precision"
DTYPE = "bf16"
_ON_PROCESSOR = ("eager", "compiled", "openvino")
_ON_GPU = ("cuda_eager", "cuda_graphs", "cuda_compiled")


def unavailable(context: Context) -> str | None:
    """Only where its matrix product was measured to be faster than that of fp32."""
    here = _paths.bf16(context.profile)
    if here is None or not context.profile.gpus:
        return here
    there = _paths.on_gpu(context.profile, "bf16")
    return f"{here}; on the GPU: {there}" if there else None


def runtimes(context: Context) -> tuple[str, ...]:
    """The runtimes of each device on which bf16 is faster."""
    profile = context.profile
    found = () if _paths.bf16(profile) else _ON_PROCESSOR
    return found if _paths.on_gpu(profile, "bf16") else (*found, *_ON_GPU)


def dims(context: Context) -> tuple[Dim, ...]:
    """None: there is one bf16."""
    del context
    return ()


def apply(form: Form, params: dict[str, Value], tools: CompressTools) -> Form:
    """Store the weights in bf16, and have the runtime compute in it."""
    return _half.halve(form, tools, "bf16", params)
