"""Data-dependent control flow: an early exit where every row of the batch is clear already."""

import torch
from fitted import digits, fit, hidden
from torch import nn

pretrained = True


class EarlyExit(nn.Module):
    def __init__(self):
        super().__init__()
        data = digits()[0]
        self.first = nn.Sequential(hidden(64, 64), nn.ReLU())
        self.exit = fit(self.first, data)
        self.second = nn.Sequential(hidden(64, 512, seed=7), nn.ReLU())
        self.head = fit(self.second, data)

    def forward(self, x):
        early = self.exit(self.first(x))
        best = early.topk(2, dim=1).values
        if bool((best[:, 0] - best[:, 1]).min() > 0.5):
            return early
        return self.head(self.second(x)) + early


def make_model():
    torch.manual_seed(0)
    return EarlyExit()


def train_data():
    return digits()[0]


def eval_data():
    return digits()[1]
