"""Classification: a small CNN on scikit-learn's handwritten digits (1,797 images of 8x8).

Shows the usual three functions: a model, training data and evaluation data.  Half of the rows are
for training, half for evaluation, stratified by class.

    autotune run examples/digits_cnn.py --goal latency --latency 0.6x --max-drop 0.02
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import TensorDataset

epochs = 20


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def _halves() -> tuple[TensorDataset, TensorDataset]:
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    labels = torch.tensor(digits)
    train, evaluate = train_test_split(
        range(len(digits)), train_size=900, stratify=digits, random_state=0
    )
    return (
        TensorDataset(images[train], labels[train]),
        TensorDataset(images[evaluate], labels[evaluate]),
    )


def train_data() -> TensorDataset:
    return _halves()[0]


def eval_data() -> TensorDataset:
    return _halves()[1]
