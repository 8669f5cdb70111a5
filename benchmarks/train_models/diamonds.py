"""Which eighth of the market a diamond's price is in: 40,000 train, 3,940
select, 10,000 confirm.
"""

import torch
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks import data


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(21, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 8)
    )


def _set(part: data.Part) -> TensorDataset:
    return TensorDataset(*map(torch.from_numpy, data.diamonds(part)))


def train_data() -> TensorDataset:
    return _set("train")


def eval_data() -> TensorDataset:
    return _set("select")


def confirm_data() -> TensorDataset:
    return _set("confirm")
