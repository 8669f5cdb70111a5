"""Runtime ``cuda_eager``: the user's own module, run by PyTorch on a GPU as it stands.

A call is from arrays in the host's memory to arrays in the host's memory: both copies count.
"cuda" is PyTorch's word for ROCm's devices too.  The deploy baseline where there is a GPU.
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
    """The layout of images in memory, for a model that convolves them."""
    return eager.dims(context)


def write(form: Form, out: Path, settings: RuntimeSettings) -> None:
    """Write source (or exported program), weights, structure and a loader."""
    _cuda.write(form, out, settings, runtime="cuda_eager", way="eager")
