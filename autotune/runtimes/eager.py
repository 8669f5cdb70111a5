"""Runtime ``eager``: the user's own module, run eagerly by PyTorch on the CPU.

``channels_last`` stores images and weights as [batch, height, width, channel]: 1.2 to 1.5 times as
fast for a CNN of depthwise convolutions, no faster for a ResNet.
"""

from pathlib import Path

from autotune.forms import Form
from autotune.records.job import Context
from autotune.records.task import Dim
from autotune.runtimes import RuntimeSettings, _artifact

DEVICE = "cpu"
TAKES = "module"
TIME_LEFT = 1.0


def unavailable(context: Context) -> str | None:
    """Always available."""
    del context
    return None


def dims(context: Context) -> tuple[Dim, ...]:
    """``channels_last``: the memory format of images, for a model with Conv2d layers."""
    if "Conv2d" not in context.traits.module_types:
        return ()
    return (Dim(name="channels_last", kind="choice", choices=(False, True)),)


def write(form: Form, out: Path, settings: RuntimeSettings) -> None:
    """Write source (or exported program), weights, structure and a loader."""
    from autotune.runtimes import _torch

    last = bool(settings.params.get("channels_last"))
    loader = _torch.loader(form, channels_last=last)
    _artifact.write(form, out, settings, runtime="eager", loader=loader)
