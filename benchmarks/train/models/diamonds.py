"""Which eighth of the market a diamond's price is in: 40,000 train, 3,940
validation, 10,000 test.
"""

from torch import nn

from benchmarks._common import data


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(21, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 8)
    )


train_data, eval_data, test_data = data.datasets(data.diamonds)
