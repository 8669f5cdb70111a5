"""Runtime ``cuda_compiled``: the module on a GPU through ``torch.compile``, its calls CUDA graphs.

Inductor fuses what `cuda_graphs` launches kernel by kernel; it compiles at the first call in every
process, a minute for a large model.
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
    """Needs a GPU, and Triton with a C compiler to write kernels for it."""
    return _cuda.unavailable(context) or _cuda.no_compiler()


def dims(context: Context) -> tuple[Dim, ...]:
    """The layout of images in memory, for a model that convolves them."""
    return eager.dims(context)


def write(form: Form, out: Path, settings: RuntimeSettings) -> None:
    """Write source (or exported program), weights, structure and a loader."""
    _cuda.write(form, out, settings, runtime="cuda_compiled", way="compiled")
