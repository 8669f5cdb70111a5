"""Fashion-MNIST, 28x28: 60,000 images train, 2,500 select, 5,000 confirm."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks import data


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 49, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def _set(part: data.Part) -> TensorDataset:
    return TensorDataset(*map(torch.from_numpy, data.fashion(part)))


def train_data() -> TensorDataset:
    return _set("train")


def eval_data() -> TensorDataset:
    return _set("select")


def confirm_data() -> TensorDataset:
    return _set("confirm")
