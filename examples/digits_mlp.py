"""Classification with the least code: a model and training data, nothing else.

There is no `eval_data`, so autotune holds out a fifth of the rows (and warns of leakage).
`recipe` is the recipe in use: it is always tried, and is the baseline.

    autotune run examples/digits_mlp.py --time 3min
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

recipe = {"optimizer": "momentum", "lr": 0.05, "momentum": 0.9, "batch_size": 64}
epochs = 20


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 256),
        nn.ReLU(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def train_data() -> TensorDataset:
    pixels, digits = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits))
