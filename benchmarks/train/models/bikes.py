"""Bicycles hired in an hour, by calendar and weather; R2.

5,500 train, 1,145 validation, 2,000 test.
"""

from torch import Tensor, nn

from benchmarks._common import data


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(53, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1)
    )


def quality(output: Tensor, target: Tensor) -> float:
    left = (output - target).square().sum()
    return float(1 - left / (target - target.mean()).square().sum())


train_data, eval_data, test_data = data.datasets(data.bikes)
