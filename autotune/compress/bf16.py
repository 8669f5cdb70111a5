"""bf16: the module computes in bfloat16 where the processor has instructions for it.

Half of fp32's bits with all of its range: nothing to calibrate, and quality hardly moves.
Inputs and outputs stay in fp32.
"""

from autotune.compress import Tools, _half, _paths
from autotune.forms import Form
from autotune.records.job import Context
from autotune.records.plan import Value
from autotune.records.task import Dim

TAKES = "module"
GIVES = "module"
GROUP = "precision"
RUNTIMES = ("eager", "compiled", "openvino")


def unavailable(context: Context) -> str | None:
    """Only where its matrix product was measured to be faster than that of fp32."""
    return _paths.bf16(context.profile)


def dims(context: Context) -> tuple[Dim, ...]:
    """None: there is one bf16."""
    del context
    return ()


def apply(form: Form, params: dict[str, Value], tools: Tools) -> Form:
    """Store the weights in bf16 and tell the runtime."""
    return _half.halve(form, tools, "bf16", params)
