"""Tied weights: one matrix encodes and decodes, and what decoding misses is a feature too."""

import torch
from fitted import digits, fit, hidden
from torch import nn

pretrained = True


class Transposed(nn.Module):
    """Decodes with another layer's own weight, the other way round."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        return x @ self.weight


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = hidden(64, 128)
        self.decoder = Transposed(self.encoder.weight)

    def forward(self, x):
        code = torch.relu(self.encoder(x))
        return torch.cat([code, torch.relu(x - 0.05 * self.decoder(code))], 1)


def make_model():
    body = Tied()
    return nn.Sequential(body, fit(body, digits()[0]))


def train_data():
    return digits()[0]


def eval_data():
    return digits()[1]
