"""tf32: a GPU multiplies fp32 numbers with a 10-bit mantissa (NVIDIA, since Ampere).

Weights stay in fp32; the loader enables tf32.  PyTorch uses it for convolutions by default and not
for matrix products, which are what this step changes.
"""

from autotune.compress import CompressTools, _paths
from autotune.forms import Form, changed
from autotune.records.job import Context
from autotune.records.plan import Value
from autotune.records.task import Dim

TAKES = "module"
GIVES = "module"
GROUP = "precision"
DTYPE = "tf32"
RUNTIMES = ("cuda_eager", "cuda_graphs", "cuda_compiled", "tensorrt")


def unavailable(context: Context) -> str | None:
    """Only on a GPU whose tf32 product was measured to be faster than that of fp32."""
    return _paths.on_gpu(context.profile, "tf32")


def dims(context: Context) -> tuple[Dim, ...]:
    """None: there is one tf32."""
    del context
    return ()


def apply(form: Form, params: dict[str, Value], tools: CompressTools) -> Form:
    """Store the same weights, and have the runtime compute in tf32.

    Raises:
        JobError: unsupported: layers are to be kept in fp32.
    """
    from autotune.errors import JobError
    from autotune.forms import module

    if params.get("keep_fp32"):
        raise JobError("unsupported", "tf32 is one setting for all layers: none can be kept apart")
    module.save(tools.module(form), tools.fresh(), tools.workdir)
    return Form("module", tools.workdir, changed(form.about, precision="tf32"))
