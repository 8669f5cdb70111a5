"""A plain script: binary cross-entropy on float targets, a loader, a main guard."""

import torch
import torch.nn as nn
from sklearn.datasets import load_breast_cancer
from torch.utils.data import DataLoader, TensorDataset

raw = load_breast_cancer()
X = torch.tensor((raw.data - raw.data.mean(0)) / raw.data.std(0)).float()
y = torch.tensor(raw.target).float().unsqueeze(1)

hidden = 24
model = nn.Sequential(nn.Linear(X.shape[1], hidden), nn.ReLU(), nn.Dropout(0.1))
model.append(nn.Linear(hidden, 1))
criterion = nn.BCEWithLogitsLoss()
epochs = 15

if __name__ == "__main__":
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(epochs):
        for xb, yb in DataLoader(TensorDataset(X, y), batch_size=16, shuffle=True):
            optimizer.zero_grad()
            criterion(model(xb), yb).backward()
            optimizer.step()
