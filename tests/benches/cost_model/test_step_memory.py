"""The memory of a training step: tracked, and resident in processes of their own."""

import msgspec
import torch
from torch import Tensor, nn

from autotune.records.plan import Recipe
from benchmarks.cost_model import step_memory

WIDE = 256


def loss(model: nn.Module, size: int) -> Tensor:
    return model(torch.ones(size, WIDE)).square().mean()


def test_both_lines() -> None:
    found = step_memory.found(lambda: nn.Linear(WIDE, 8 * WIDE), loss, Recipe())
    weights = 4 * (WIDE + 1) * 8 * WIDE
    assert found.base_bytes > weights
    assert found.fixed_bytes >= 3 * weights  # with gradients and Adam's moments
    assert found.bytes_per_sample >= 4 * 8 * WIDE
    if found.peak_bytes_per_sample is not None:
        assert found.peak_fixed_bytes is not None
        assert found.peak_fixed_bytes >= weights


def test_prediction_is_on_the_line_of_resident_peaks_and_never_under_what_was_tracked() -> None:
    tracked = step_memory.StepMemory(base_bytes=1000, fixed_bytes=100, bytes_per_sample=10)
    peaks = msgspec.structs.replace(tracked, peak_fixed_bytes=120, peak_bytes_per_sample=20)
    assert step_memory.predicted(peaks, 8).value == 1000 + 120 + 160
    less = msgspec.structs.replace(tracked, peak_fixed_bytes=0, peak_bytes_per_sample=0)
    assert step_memory.predicted(less, 8).value == 1000 + 100 + 80
    assert step_memory.predicted(tracked, 8).value > 1000 + 100 + 80
