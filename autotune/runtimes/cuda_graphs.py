"""Runtime ``cuda_graphs``: the module on a GPU, captured into one CUDA graph per input shape.

Kernels that eager code launches one by one, some 6 us each, are launched at once, which gains most
at small batches.  Capturing takes a few calls and no compiler.  It fails, with CUDA's message, for
code that depends on values (`.item()`, branches on data).
"""

from pathlib import Path

from autotune.forms import Form
from autotune.records.job import Context
from autotune.records.task import Dim
from autotune.runtimes import RuntimeSettings, _cuda, eager

DEVICE = "cuda"
TAKES = "module"


def unavailable(context: Context) -> str | None:
    """Needs a GPU that PyTorch computes on."""
    return _cuda.unavailable(context)


def dims(context: Context) -> tuple[Dim, ...]:
    """``channels_last``: the memory format of images, for a model with Conv2d layers."""
    return eager.dims(context)


def write(form: Form, out: Path, settings: RuntimeSettings) -> None:
    """Write source (or exported program), weights, structure and a loader."""
    _cuda.write(form, out, settings, runtime="cuda_graphs", way="graphs")
