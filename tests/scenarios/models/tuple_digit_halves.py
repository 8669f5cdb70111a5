"""A tuple input: the upper and the lower half of a digit, each through one shared tower."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset

epochs = 12


class Halves(Dataset):
    def __init__(self):
        pixels, self.labels = load_digits(return_X_y=True)
        self.images = (pixels / 16).astype("float32")

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        image = self.images[row]
        return (image[:32], image[32:]), self.labels[row]


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(32, 64), nn.ReLU())
        self.head = nn.Linear(128, 10)

    def forward(self, upper, lower):
        return self.head(torch.cat([self.tower(upper), self.tower(lower)], dim=1))


def make_model():
    return Shared()


def train_data():
    return Halves()
