"""Runtime ``cuda_compiled``: the module on a GPU through ``torch.compile`` with CUDA graphs.

Inductor fuses kernels that `cuda_graphs` runs one by one.  It compiles at the first call in every
process, which takes a minute for a large model.
"""

from pathlib import Path

from autotune.forms import Form
from autotune.records.job import Context
from autotune.records.task import Dim
from autotune.runtimes import RuntimeSettings, _cuda, eager

DEVICE = "cuda"
TAKES = "module"
COMPILES = "first_call"


def unavailable(context: Context) -> str | None:
    """Needs a GPU, Triton and a C compiler."""
    return _cuda.unavailable(context) or _cuda.no_compiler()


def dims(context: Context) -> tuple[Dim, ...]:
    """``channels_last``: the memory format of images, for a model with Conv2d layers."""
    return eager.dims(context)


def write(form: Form, out: Path, settings: RuntimeSettings) -> None:
    """Write source (or exported program), weights, structure and a loader."""
    _cuda.write(form, out, settings, runtime="cuda_compiled", way="compiled")
