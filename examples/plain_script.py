"""A plain PyTorch training script, which also runs without autotune.

    python examples/plain_script.py
    autotune run examples/plain_script.py --time 3min

autotune executes it until `model`, `criterion`, `X` and `y` are defined; the loop below is not run.
"""

import torch
import torch.nn as nn
from sklearn.datasets import load_digits

torch.manual_seed(0)
epochs = 20
batch_size = 32

digits = load_digits()
X = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)

model = nn.Sequential(
    nn.Linear(64, 128),
    nn.ReLU(),
    nn.Linear(128, 64),
    nn.ReLU(),
    nn.Linear(64, 10),
)
criterion = nn.CrossEntropyLoss()

optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
train, test = torch.randperm(len(X)).split([1400, len(X) - 1400])

for epoch in range(epochs):
    model.train()
    for batch in train[torch.randperm(len(train))].split(batch_size):
        optimizer.zero_grad()
        loss = criterion(model(X[batch]), y[batch])
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        right = (model(X[test]).argmax(1) == y[test]).float().mean()
    print(f"epoch {epoch + 1:2d}  loss {loss.item():.4f}  test accuracy {right:.4f}")
