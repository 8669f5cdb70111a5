"""Handwritten digits of scikit-learn, 8x8: 1,000 train, 300 validation, 497 test."""

from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.train.models import _tables

_PARTS = _tables.parts("digits", (1000, 1300))


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
    )


def train_data() -> TensorDataset:
    return _PARTS["train"]


def eval_data() -> TensorDataset:
    return _PARTS["validation"]


def test_data() -> TensorDataset:
    return _PARTS["test"]
