"""The model of `benchmarks.reuse`: a small CNN on handwritten digits, of the given width.

autotune run benchmarks/reuse/model.py -- 40
"""

import sys

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import TensorDataset

WIDTH = int(sys.argv[1]) if len(sys.argv) > 1 else 32
epochs = 4


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, WIDTH, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(WIDTH, 2 * WIDTH, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(2 * WIDTH, 2 * WIDTH, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * WIDTH * 4 * 4, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def _part(index: int) -> TensorDataset:
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    rows = train_test_split(range(len(digits)), train_size=900, stratify=digits, random_state=0)
    return TensorDataset(images[rows[index]], torch.tensor(digits)[rows[index]])


def train_data() -> TensorDataset:
    return _part(0)


def eval_data() -> TensorDataset:
    return _part(1)
