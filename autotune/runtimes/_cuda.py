"""What the GPU runtimes share: when they can be used, and how their artifacts are written."""

import importlib.util
import shutil
from pathlib import Path

from autotune.forms import Form
from autotune.records.job import Context
from autotune.runtimes import RuntimeSettings, _artifact
from autotune.runtimes._torch import Way


def unavailable(context: Context | None) -> str | None:
    """Why the GPU cannot be used; None if it can."""
    if context is None:
        import torch

        there = torch.cuda.is_available()
    else:
        there = bool(context.profile.gpus)
    if not there:
        return "needs a GPU that PyTorch computes on (CUDA or ROCm), and a PyTorch built for it"
    return None


def no_compiler() -> str | None:
    """Why Triton cannot generate kernels; None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "Inductor writes a GPU's kernels in Triton: `pip install triton`"
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return "Triton needs a C compiler: `apt-get install gcc`"
    return None


def write(form: Form, out: Path, settings: RuntimeSettings, *, runtime: str, way: Way) -> None:
    """Write an artifact that computes on the GPU."""
    from autotune.runtimes import _torch

    last = bool(settings.params.get("channels_last"))
    loader = _torch.loader(form, way, device="cuda", channels_last=last)
    _artifact.write(form, out, settings, runtime=runtime, loader=loader)
