"""An MLP on a table of 53,940 diamonds: in which eighth of the market is the price?"""

from torch import nn

from benchmarks._common import data

recipe = {
    "optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.01, "schedule": "one_cycle",
    "batch_size": 256,
}  # fmt: skip
epochs = 12


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(21, 512),
        nn.ReLU(),
        nn.Linear(512, 1024),
        nn.ReLU(),
        nn.Linear(1024, 512),
        nn.ReLU(),
        nn.Linear(512, 8),
    )


train_data, eval_data, test_data = data.datasets(data.diamonds)
