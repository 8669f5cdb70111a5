"""A set of which 94 % are one class, and a model that int8 turns into one that always says so.

The planted channel of `outliers.py` again: accuracy then falls little, balanced accuracy to a half.
"""

import torch
from fitted import drawn, fit, hidden
from torch import nn
from torch.utils.data import TensorDataset

pretrained = True
FACTOR = 3000.0


def rows(count, seed):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 24, generator=draw)
    signal = x @ drawn(24, seed=5) * 24**0.5 / drawn(24, seed=5).mul(24**0.5).norm()
    noisy = signal + 0.35 * torch.randn(count, generator=draw)
    threshold = noisy.sort().values[int(0.94 * count)]
    return TensorDataset(x, (noisy > threshold).long())


def make_model():
    data = rows(4000, seed=0)
    body = nn.Sequential(hidden(24, 256), nn.ReLU())
    head = fit(body, data, classes=2)
    with torch.no_grad():
        head.bias[1] += 0.25  # least squares is shy of a rare class
        body[0].weight[0] *= FACTOR
        body[0].bias[0] *= FACTOR
        head.weight[:, 0] /= FACTOR
    return nn.Sequential(*body, head)


def train_data():
    return rows(4000, seed=0)


def eval_data():
    return rows(4000, seed=1)
