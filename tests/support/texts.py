"""Pieces of model files for tests that train."""

DATA = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

def _data(rows, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 6, generator=g)
    return TensorDataset(x, x[:, :3].argmax(1))

def train_data():
    return _data(33, 0)

def eval_data():
    return _data(40, 1)
"""


def noisy(train: int | None = 33, evaluation: int = 40) -> str:
    """Three classes, each the largest of three noisy inputs, in so many rows."""
    parts = {"train_data": train, "eval_data": evaluation}
    return """
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

def _data(rows, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 6, generator=g)
    return TensorDataset(x, (x[:, :3] + 0.1 * torch.randn(rows, 3, generator=g)).argmax(1))
""" + "".join(
        f"\ndef {name}():\n    return _data({rows}, {seed})\n"
        for seed, (name, rows) in enumerate(parts.items())
        if rows is not None
    )


TIED = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))
"""
