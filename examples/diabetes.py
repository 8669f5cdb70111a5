"""Regression: progression of diabetes after a year, from ten measurements of 442 patients.

Shows `quality`, one number over a whole data set: here the share of variance explained (R squared).
Without a per-sample `score`, autotune compares plans by a paired bootstrap.

    autotune run examples/diabetes.py --max-drop 0.02 --time 3min
"""

import torch
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import TensorDataset

epochs = 30


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0))


def quality(output: Tensor, target: Tensor) -> float:
    rest = (output - target).square().sum()
    return float(1 - rest / (target - target.mean()).square().sum())


def train_data() -> TensorDataset:
    return _rows()[0]


def eval_data() -> TensorDataset:
    return _rows()[1]


def _rows() -> tuple[TensorDataset, TensorDataset]:
    features, progress = load_diabetes(return_X_y=True)
    x = torch.tensor(features / features.std(axis=0), dtype=torch.float32)
    y = torch.tensor((progress - 152) / 77, dtype=torch.float32)  # the set's mean and spread
    train, held = train_test_split(range(len(y)), train_size=0.55, random_state=0)
    return TensorDataset(x[train], y[train]), TensorDataset(x[held], y[held])
