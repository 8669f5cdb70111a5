"""Runtime ``eager``: the user's own module, run by PyTorch as it stands."""

from pathlib import Path

from autotune.forms import Form
from autotune.records.job import Context
from autotune.records.task import Dim
from autotune.runtimes import Tools, _artifact

TAKES = "module"


def unavailable(context: Context) -> str | None:
    """Always there: it is what the model was trained in."""
    del context
    return None


def dims(context: Context) -> tuple[Dim, ...]:
    """None so far."""
    del context
    return ()


def write(form: Form, out: Path, tools: Tools) -> None:
    """Write source (or exported program), weights, structure and a loader."""
    from autotune.runtimes import _torch

    loader = _torch.loader(form, compiled=False)
    _artifact.write(form, out, tools, runtime="eager", loader=loader)
