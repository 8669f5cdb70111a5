"""What can be used here: every plug-in's answer, the precisions that are faster on this machine,
the optimizers that this torch has and this model can use, and options of the training step.
"""

from pathlib import Path
from typing import Any, get_args

from autotune import plugins
from autotune.compress import _paths
from autotune.records.hardware import Profile
from autotune.records.job import Context, Menu, Options
from autotune.records.plan import Optimizer
from autotune.records.task import Option, Traits
from autotune.runtimes import compiled
from autotune.worker.channel import Channel

_FOLDERS = (("runtime", "runtimes"), ("compress", "compress"), ("parallel", "parallel"))


def run(job: Menu, root: Path, channel: Channel) -> Options:
    """One `Option` per plug-in, precision, optimizer and training step; refused ones with why."""
    del root, channel
    found = [
        _option(kind, folder, name, job.context)
        for kind, folder in _FOLDERS
        for name in plugins.names(folder)
    ]
    rules = optimizers(job.context.traits)
    steps = training_steps(job.context, job.context.traits)
    return Options(options=(*found, *precisions(job.context.profile), *rules, *steps))


def _option(kind: str, folder: str, name: str, context: Context) -> Option:
    plugin = plugins.load(folder, name)
    reason = plugin.unavailable(context)
    return Option(
        kind=kind,
        name=name,
        available=reason is None,
        reason=reason,
        **declared(plugin, context),
    )


_ASKED = ("kind", "name", "available", "reason", "excluded_by_user")


def declared(plugin: Any, context: Context) -> dict[str, Any]:
    """What a plug-in says of itself: each other field of `Option` is a constant of its module
    (``DEVICE``), or a function of the context (``dims``); one that it lacks has its default.
    """
    found: dict[str, Any] = {}
    for field in Option.__struct_fields__:
        if field in _ASKED:
            continue
        if hasattr(plugin, field.upper()):
            found[field] = getattr(plugin, field.upper())
        elif hasattr(plugin, field):
            found[field] = getattr(plugin, field)(context)
    return found


def precisions(profile: Profile) -> tuple[Option, ...]:
    """fp32 always; bf16 only where its matrix product was measured to be faster.

    torch runs bf16 on any processor, but without instructions for it many times slower than fp32.
    tf32 and fp16 need a GPU; whether they are faster is measured with the model itself
    (`training.throughput_stage`).
    """
    reasons = {
        "fp32": None,
        "bf16": _paths.bf16(profile),
        "tf32": _gpu_refusal(profile, "tf32", _AMPERE),
        "fp16": _gpu_refusal(profile, "fp16", _VOLTA),
    }
    return tuple(
        Option(kind="precision", name=name, available=reason is None, reason=reason)
        for name, reason in reasons.items()
    )


def optimizers(traits: Traits) -> tuple[Option, ...]:
    """Every optimizer; refused where this torch lacks it or the model cannot use it."""
    from autotune.worker.training.optimizers import unavailable

    reasons = {name: unavailable(name, traits.hidden_matrices) for name in get_args(Optimizer)}
    return tuple(
        Option(kind="optimizer", name=name, available=reason is None, reason=reason)
        for name, reason in reasons.items()
    )


_IMAGES = ("Conv2d", "ConvTranspose2d")


def training_steps(context: Context, traits: Traits) -> tuple[Option, ...]:
    """Options of the training step; `training.step_options` measures whether they are faster."""
    reason = compiled.unavailable(context)
    convolves = any(name in traits.module_types for name in _IMAGES)
    none = None if convolves else "the model has no two-dimensional convolution"
    return (
        Option(kind="step", name="channels_last", available=convolves, reason=none),
        Option(kind="step", name="compile", available=reason is None, reason=reason),
        Option(kind="step", name="recompute", available=True),
    )


_VOLTA, _AMPERE = (7, 0), (8, 0)


def _gpu_refusal(profile: Profile, name: str, least: tuple[int, int]) -> str | None:
    """Why a precision of NVIDIA's GPUs cannot be used here."""
    found = [gpu.compute_capability for gpu in profile.gpus]
    if not found:
        return f"needs an NVIDIA GPU: no product in {name} is faster than fp32 on this processor"
    if any(version is None for version in found):
        return f"needs an NVIDIA GPU of compute capability {least[0]}.{least[1]}: it is not known"
    old = [version for version in found if version and _version(version) < least]
    if old:
        return f"needs compute capability {least[0]}.{least[1]}, this GPU has {old[0]}"
    return None


def _version(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor or 0)
