"""Fashion-MNIST, 28x28: 60,000 images train, 2,500 validation, 5,000 test."""

from torch import nn

from benchmarks._common import data


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 49, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


train_data, eval_data, test_data = data.datasets(data.fashion)
