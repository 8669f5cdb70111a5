"""Runtime ``cuda_eager``: the user's own module, run eagerly by PyTorch on a GPU.

Inputs and outputs are arrays in host memory, so a call includes both copies.  PyTorch calls ROCm
devices "cuda" too.  The deploy baseline where there is a GPU.
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
    _cuda.write(form, out, settings, runtime="cuda_eager", way="eager")
