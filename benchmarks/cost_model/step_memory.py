"""How much memory a training step of a batch takes, without taking it.

    two small batches, one real step each, under MemTracker  --line--> tracked bytes at any batch
    two small batches, some steps each, in forked processes  --line--> resident bytes at any batch
    what this process held before                            --------> base

MemTracker (torch.distributed._tools) sees every tensor's storage, so that its peak is exact in
what it counts: weights, gradients, optimizer state, activations, temporaries.  It does not see
what libraries allocate by themselves or what the allocator keeps; `predicted` adds these by
calibration.

What this does not know: a batch at which an algorithm changes.
"""

import os
from collections.abc import Callable
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from autotune.records.base import Record
from autotune.records.measurement import Interval
from autotune.records.plan import Recipe
from autotune.worker.training import optimizers
from autotune.worker.training.evaluation import peak_memory_bytes

SIZES = (4, 8)
"""Batches that are stepped: above 1 for batch norm, and small."""

RESIDENT_SIZES = (4, 12)
_RESIDENT_STEPS = 3
_KEPT, _KEPT_SPREAD, _BASE_SPREAD = 1.35, 0.25, 0.03
"""Resident over tracked bytes of activations, and the half-widths of 90 % intervals."""
Step = Callable[[nn.Module, int], Tensor]


class StepMemory(Record, frozen=True, kw_only=True, tag="Footprinted"):
    """``base_bytes`` were resident before; the step's tensors take ``fixed_bytes`` and
    ``bytes_per_sample`` for each sample of the batch.  ``peak_...``: the same line through the
    resident peaks (above the base) of two processes that took such steps; None where processes
    cannot be forked.
    """

    base_bytes: int
    fixed_bytes: int
    bytes_per_sample: int
    peak_fixed_bytes: int | None = None
    peak_bytes_per_sample: int | None = None


def predicted(found: StepMemory, batch: int) -> Interval:
    """Peak resident bytes of training one process at this batch.

    On the line through two resident peaks where there is one, but never less than what was
    tracked.  Else what libraries copy by themselves and what the allocator cannot give back is
    taken in proportion to the activations (`_KEPT`, from models outside the benchmark).
    """
    per_sample, fixed = _KEPT * found.bytes_per_sample, float(found.fixed_bytes)
    if found.peak_bytes_per_sample is not None and found.peak_fixed_bytes is not None:
        per_sample = max(found.bytes_per_sample, found.peak_bytes_per_sample)
        fixed = max(found.fixed_bytes, found.peak_fixed_bytes)
    step = fixed + per_sample * batch
    spread = _KEPT_SPREAD * per_sample * batch + _BASE_SPREAD * found.base_bytes
    value = found.base_bytes + step
    return Interval(value=value, low=value - min(spread, 0.5 * step), high=value + spread)


def found(make: Callable[[], nn.Module], loss: Step, recipe: Recipe) -> StepMemory:
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
    return StepMemory(
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
