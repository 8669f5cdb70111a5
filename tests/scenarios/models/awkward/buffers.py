"""Buffers, kept and not kept in the state dict, a batch norm with a history, and dropout."""

import torch
from fitted import digits, fit, hidden
from torch import nn

pretrained = True


class Buffered(nn.Module):
    def __init__(self):
        super().__init__()
        x = digits()[0].tensors[0]
        self.register_buffer("mean", x.mean(0))
        self.register_buffer("window", torch.hann_window(10)[1:9].repeat(8), persistent=False)
        self.layer, self.norm, self.dropout = hidden(64, 256), nn.BatchNorm1d(256), nn.Dropout(0.5)
        with torch.no_grad():
            found = self.layer((x - self.mean) * (0.5 + self.window))
            self.norm.running_mean.copy_(found.mean(0))
            self.norm.running_var.copy_(found.var(0))

    def forward(self, x):
        x = self.layer((x - self.mean) * (0.5 + self.window))
        return self.dropout(torch.relu(self.norm(x)))


def make_model():
    body = Buffered()
    return nn.Sequential(body, fit(body, digits()[0]))


def train_data():
    return digits()[0]


def eval_data():
    return digits()[1]
