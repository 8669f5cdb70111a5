"""The memory of a training step: tracked, and resident in processes of their own."""

import torch
from torch import Tensor, nn

from autotune.records.plan import Recipe
from autotune.worker.training import footprint

WIDE = 256


def loss(model: nn.Module, size: int) -> Tensor:
    return model(torch.ones(size, WIDE)).square().mean()


def test_both_lines() -> None:
    found = footprint.found(lambda: nn.Linear(WIDE, 8 * WIDE), loss, Recipe())
    weights = 4 * (WIDE + 1) * 8 * WIDE
    assert found.base_bytes > weights
    assert found.fixed_bytes >= 3 * weights  # with gradients and Adam's moments
    assert found.bytes_per_sample >= 4 * 8 * WIDE
    if found.peak_bytes_per_sample is not None:
        assert found.peak_fixed_bytes is not None
        assert found.peak_fixed_bytes >= weights
