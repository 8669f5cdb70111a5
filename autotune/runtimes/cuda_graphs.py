"""Runtime ``cuda_graphs``: the module on a GPU, each shape of input captured into one CUDA graph.

What eager code launches one by one, some 6 us each, is launched at once: the smaller the batch, the
more it gains.  Capturing takes a few calls and no compiler.  Not for code that looks at values
(`.item()`, branches on data): its capture fails, and the failure says so.
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
    _cuda.write(form, out, settings, runtime="cuda_graphs", way="graphs")
