"""Runtime ``eager``: the user's own module, run by PyTorch as it stands.

``channels_last`` keeps images and weights as [batch, height, width, channel] in memory: here 1.2
to 1.5 times as fast on a CNN of depthwise convolutions, and no faster on a ResNet.
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
    """Always there: it is what the model was trained in."""
    del context
    return None


def dims(context: Context) -> tuple[Dim, ...]:
    """The layout of images in memory, for a model that convolves them."""
    if "Conv2d" not in context.traits.module_types:
        return ()
    return (Dim(name="channels_last", kind="choice", choices=(False, True)),)


def write(form: Form, out: Path, settings: RuntimeSettings) -> None:
    """Write source (or exported program), weights, structure and a loader."""
    from autotune.runtimes import _torch

    last = bool(settings.params.get("channels_last"))
    loader = _torch.loader(form, channels_last=last)
    _artifact.write(form, out, settings, runtime="eager", loader=loader)
