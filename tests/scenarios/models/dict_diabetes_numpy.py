"""A dict input of NumPy arrays and an integer category; float targets; a user's own score."""

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from torch import nn

epochs = 20
higher_is_better = False


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.sex = nn.Embedding(2, 4)
        self.body = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, *, sex, measurements):
        return self.body(torch.cat([self.sex(sex), measurements], dim=1))


class Patients:
    def __init__(self, odd):
        x, y = load_diabetes(return_X_y=True)
        self.sex = (x[odd::2, 1] > 0).astype(np.int64)
        self.rest = np.delete(x[odd::2], 1, axis=1) * 21
        self.y = ((y[odd::2] - 152) / 77)[:, None]

    def __len__(self):
        return len(self.y)

    def __getitem__(self, row):
        return {"sex": self.sex[row], "measurements": self.rest[row]}, self.y[row]


def make_model():
    return Mixed()


def score(output, target):
    return (output - target).abs().mean(1)


def train_data():
    return Patients(0)


def eval_data():
    return Patients(1)
