"""How much memory a training step of a batch takes, without taking it.

    two small batches, one real step each, under MemTracker  --line--> tracked bytes at any batch
    two small batches, some steps each, in forked processes  --line--> resident bytes at any batch
    what this process held before                            --------> base

MemTracker (torch.distributed._tools) sees every tensor's storage, so that its peak is exact in
what it counts: weights, gradients, optimizer state, activations, temporaries.  It does not see
what libraries allocate by themselves or what the allocator keeps; `hardware.op_latency` adds these
by calibration.

What this does not know: a batch at which an algorithm changes, and a user's own loop.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from autotune.errors import JobError
from autotune.records.job import Footprint, Footprinted
from autotune.records.plan import Recipe
from autotune.worker.channel import Channel
from autotune.worker.contract import task
from autotune.worker.training import optimizers
from autotune.worker.training.evaluation import peak_memory_bytes, rows_of

SIZES = (4, 8)
"""Batches that are stepped: above 1 for batch norm, and small."""

RESIDENT_SIZES = (4, 12)
_RESIDENT_STEPS = 3
Step = Callable[[nn.Module, int], Tensor]


def run(job: Footprint, root: Path, channel: Channel) -> Footprinted:
    """Track one step of the task's fresh model at two batch sizes.

    Raises:
        JobError: unsupported: the user trains by a loop of their own, or a step is not tracked.
    """
    loaded = task.load(job.task)
    loaded.remember(root)
    if loaded.own_train is not None:
        raise JobError("unsupported", "the model has its own train(): its memory is not foreseen")
    rows = rows_of(loaded)

    def loss(model: nn.Module, size: int) -> Tensor:
        samples = [rows[i % len(rows)] for i in range(size)]
        inputs, target = loaded.collate(samples)
        return loaded.loss(loaded.call(model, inputs), target)

    try:
        return found(lambda: loaded.make_model(), loss, job.recipe)
    except (RuntimeError, AssertionError, KeyError) as error:
        raise JobError("unsupported", f"a training step cannot be tracked: {error}") from error


def found(make: Callable[[], nn.Module], loss: Step, recipe: Recipe) -> Footprinted:
    """Both lines of one model."""
    peaks = [_resident(make, loss, recipe, size) for size in RESIDENT_SIZES]
    warm_up(recipe)
    base = resident_bytes()
    fixed, per_sample = line(make, loss, recipe)
    more: int | None = None
    start: int | None = None
    if peaks[0] is not None and peaks[1] is not None:
        more = max(0, (peaks[1] - peaks[0]) // (RESIDENT_SIZES[1] - RESIDENT_SIZES[0]))
        start = max(0, peaks[0] - more * RESIDENT_SIZES[0])
    return Footprinted(
        base_bytes=base,
        fixed_bytes=fixed,
        bytes_per_sample=per_sample,
        peak_fixed_bytes=start,
        peak_bytes_per_sample=more,
    )


def _resident(make: Callable[[], nn.Module], loss: Step, recipe: Recipe, size: int) -> int | None:
    """The resident peak above the base of a forked process that trains on one thread (a fork may
    not use its parent's pool); None where it cannot be had.
    """
    if not hasattr(os, "fork"):
        return None
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            torch.set_num_threads(1)
            warm_up(recipe)
            base, model = resident_bytes(), make().train()
            optimizer = optimizers.build(recipe, model)
            for _ in range(_RESIDENT_STEPS):
                loss(model, size).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad()
            os.write(writer, str(peak_memory_bytes() - base).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answers:
        text = answers.read()
    os.waitpid(child, 0)
    return int(text) if text else None


def line(make: Callable[[], nn.Module], loss: Step, recipe: Recipe) -> tuple[int, int]:
    """Tracked bytes of a step: those of no sample, and those that each one adds."""
    small, large = (tracked(make(), loss, recipe, size) for size in SIZES)
    per_sample = max(0, (large - small) // (SIZES[1] - SIZES[0]))
    return max(0, small - per_sample * SIZES[0]), per_sample


def tracked(model: nn.Module, loss: Step, recipe: Recipe, size: int) -> int:
    """The tracked peak of the second step, when gradients and state are there from the first."""
    from torch.distributed._tools.mem_tracker import MemTracker

    model.train()
    optimizer = optimizers.build(recipe, model)
    tracker: Any = MemTracker()
    tracker.track_external(model, *optimizer.optimizers)
    with tracker:
        for number in range(2):
            loss(model, size).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            if number == 0:
                tracker.reset_mod_stats()
    peak = tracker.get_tracker_snapshot("peak")
    return sum(int(by_kind["Total"]) for by_kind in peak.values())


def warm_up(recipe: Recipe) -> None:
    """What the first step of any model loads: an optimizer's imports, kernels, their pools."""
    layer = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 8))
    plain = msgspec.structs.replace(recipe, optimizer="adamw", ema=None)  # any rule's imports
    optimizer = optimizers.build(plain, layer)
    layer(torch.randn(2, 1, 8, 8)).sum().backward()
    optimizer.step()


def resident_bytes() -> int:
    """What this process holds now."""
    import psutil

    return int(psutil.Process().memory_info().rss)
