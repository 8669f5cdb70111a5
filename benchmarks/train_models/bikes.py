"""Bicycles hired in an hour, by calendar and weather; R2.

5,500 train, 1,145 select, 2,000 confirm.
"""

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks import data


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(53, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1)
    )


def quality(output: Tensor, target: Tensor) -> float:
    left = (output - target).square().sum()
    return float(1 - left / (target - target.mean()).square().sum())


def _set(part: data.Part) -> TensorDataset:
    return TensorDataset(*map(torch.from_numpy, data.bikes(part)))


def train_data() -> TensorDataset:
    return _set("train")


def eval_data() -> TensorDataset:
    return _set("select")


def confirm_data() -> TensorDataset:
    return _set("confirm")
