"""A custom `torch.autograd.Function`: signs forward, straight through backward."""

import torch
from fitted import digits, fit, hidden
from torch import nn

pretrained = True


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x > 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1)


class Signs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = hidden(64, 512)

    def forward(self, x):
        return StraightThrough.apply(self.layer(x - 0.3))


def make_model():
    body = Signs()
    return nn.Sequential(body, fit(body, digits()[0], ridge=30.0))


def train_data():
    return digits()[0]


def eval_data():
    return digits()[1]
