"""A training step through ``torch.compile``.

    full batches   -> the compiled step, compiled at the first one
    short batches  -> eager: another shape would be another compilation

The weights are the model's own, which is evaluated and saved uncompiled.  One process, rows of one
shape.  Compiled kernels draw their own random numbers: dropout drops other units than in eager.
"""

import os
from pathlib import Path
from typing import cast

import torch
from torch import nn

from autotune.errors import JobError
from autotune.records.plan import Recipe
from autotune.records.task import TaskInfo

BACKEND = "inductor"


def keep_under(root: Path) -> None:
    """Keep compiled code in the run's cache, where a resumed trial finds it."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root / "cache" / "inductor"))


def compiled(module: nn.Module, world: int, recipe: Recipe, info: TaskInfo) -> nn.Module:
    """The module compiled, with the same weights.

    Raises:
        JobError: unsupported.
    """
    reasons = {
        "the steps of several processes are not compiled: use one": world > 1,
        "rows differ in shape, and each shape would be compiled": info.ragged,
        "compile and recompute cannot be combined: choose one": recipe.recompute,
    }
    for reason, here in reasons.items():
        if here:
            raise JobError("unsupported", reason)
    import torch._inductor.config as inductor

    inductor.compile_threads = 1  # a pool of compilers would outlive the job
    return cast(nn.Module, torch.compile(module, dynamic=False, backend=BACKEND))
