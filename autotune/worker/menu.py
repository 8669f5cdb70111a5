"""What is legal here: every plug-in's answer, the precisions that pay on this machine, and the
optimizers that this torch and this model have a use for.
"""

from pathlib import Path
from typing import get_args

from autotune import plugins
from autotune.compress import _paths
from autotune.records.hardware import Profile
from autotune.records.job import Context, Menu, Options
from autotune.records.plan import Optimizer
from autotune.records.task import Option, Traits
from autotune.worker.channel import Channel

_FOLDERS = (("runtime", "runtimes"), ("compress", "compress"), ("parallel", "parallel"))


def run(job: Menu, root: Path, channel: Channel) -> Options:
    """One `Option` per plug-in, precision and optimizer, refused ones with their reason."""
    del root, channel
    found = [
        _option(kind, folder, name, job.context)
        for kind, folder in _FOLDERS
        for name in plugins.names(folder)
    ]
    rules = optimizers(job.context.traits)
    return Options(options=(*found, *precisions(job.context.profile), *rules))


def _option(kind: str, folder: str, name: str, context: Context) -> Option:
    plugin = plugins.load(folder, name)
    reason = plugin.unavailable(context)
    return Option(
        kind=kind,
        name=name,
        available=reason is None,
        reason=reason,
        takes=getattr(plugin, "TAKES", None),
        gives=getattr(plugin, "GIVES", None),
        group=getattr(plugin, "GROUP", None),
        dims=plugin.dims(context) if hasattr(plugin, "dims") else (),
        runtimes=getattr(plugin, "RUNTIMES", None),
        trains=getattr(plugin, "TRAINS", False),
    )


def precisions(profile: Profile) -> tuple[Option, ...]:
    """fp32 always; bf16 only where its matrix product was measured to be the faster one.

    Whether a processor "supports" bf16 says nothing: without the instructions for it, it is
    many times slower than fp32.
    """
    reason = _paths.bf16(profile)
    return (
        Option(kind="precision", name="fp32", available=True),
        Option(kind="precision", name="bf16", available=reason is None, reason=reason),
    )


def optimizers(traits: Traits) -> tuple[Option, ...]:
    """Every update rule; refused where this torch lacks it or the model has no use for it."""
    from autotune.worker.optimizers import unavailable

    reasons = {name: unavailable(name, traits.hidden_matrices) for name in get_args(Optimizer)}
    return tuple(
        Option(kind="optimizer", name=name, available=reason is None, reason=reason)
        for name, reason in reasons.items()
    )
