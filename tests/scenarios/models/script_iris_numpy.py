"""A plain script: NumPy arrays, a class, helper functions, a loop at the end."""

import numpy as np
import torch
from sklearn.datasets import load_iris
from torch import nn


class Iris(nn.Module):
    def __init__(self, features: int, classes: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, 32), nn.Tanh(), nn.Linear(32, classes))

    def forward(self, x):
        return self.layers(x)


def standardise(x):
    return (x - x.mean(axis=0)) / x.std(axis=0)


X, y = load_iris(return_X_y=True)
X = standardise(X)
print("classes", np.unique(y))
model = Iris(X.shape[1], len(np.unique(y)))
loss_fn = nn.CrossEntropyLoss()
epochs = 30

opt = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(epochs):
    opt.zero_grad()
    loss = loss_fn(model(torch.tensor(X, dtype=torch.float32)), torch.tensor(y))
    loss.backward()
    opt.step()
print(loss.item())
