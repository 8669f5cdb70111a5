"""Digits, and a linear head fitted to a body's features in closed form: trained in a blink."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset


def digits() -> tuple[TensorDataset, TensorDataset]:
    """1,000 images to fit and calibrate with, 797 to judge by."""
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    return TensorDataset(x[:1000], y[:1000]), TensorDataset(x[1000:], y[1000:])


def fit(body: nn.Module, data: TensorDataset, classes: int = 10, ridge: float = 1.0) -> nn.Linear:
    """The head ``[features, classes]`` of least squares on one-hot targets."""
    x, y = data.tensors
    with torch.no_grad():
        features = body.eval()(x).double()
        features = torch.cat([features, torch.ones(len(x), 1, dtype=torch.float64)], 1)
        targets = nn.functional.one_hot(y, classes).double()
        gram = features.T @ features + ridge * torch.eye(features.shape[1], dtype=torch.float64)
        solved = torch.linalg.solve(gram, features.T @ targets).float()
        head = nn.Linear(features.shape[1] - 1, classes)
        head.weight.copy_(solved[:-1].T)
        head.bias.copy_(solved[-1])
    return head


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random weights of a fixed seed, scaled by their inputs."""
    weights = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return weights / shape[-1] ** 0.5


def hidden(inputs: int, width: int, seed: int = 0) -> nn.Linear:
    """A layer of random features."""
    layer = nn.Linear(inputs, width)
    with torch.no_grad():
        layer.weight.copy_(3 * drawn(width, inputs, seed=seed))
        layer.bias.copy_(drawn(width, 1, seed=seed + 1)[:, 0])
    return layer
