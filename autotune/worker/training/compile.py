"""A training step through ``torch.compile``.

    whole batches  -> the compiled step, made at the first one, once
    short batches  -> the model as it is: another shape would be another compilation

Weights are the model's own, which is evaluated and saved uncompiled.  One process, rows of one
shape.  Kernels draw their own random numbers, so that dropout drops other units than eager does.
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
    """Compiled code is kept in the run's cache: a trial that goes on finds it there."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root / "cache" / "inductor"))


def compiled(module: nn.Module, world: int, recipe: Recipe, info: TaskInfo) -> nn.Module:
    """The module's compiled twin, of the same weights.

    Raises:
        JobError: unsupported.
    """
    reasons = {
        "the steps of several processes are not compiled: use one": world > 1,
        "rows differ in shape, and each shape would be compiled": info.ragged,
        "a step that is compiled is not recomputed too: choose one": recipe.recompute,
    }
    for reason, here in reasons.items():
        if here:
            raise JobError("unsupported", reason)
    import torch._inductor.config as inductor

    inductor.compile_threads = 1  # a pool of compilers would outlive the job
    return cast(nn.Module, torch.compile(module, dynamic=False, backend=BACKEND))
