"""A GRU on hourly weather at three airports: will it be warmer in three hours?"""

from torch import Tensor, nn

from benchmarks._common import data

recipe = {
    "optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.02, "schedule": "one_cycle",
    "batch_size": 64,
}  # fmt: skip
epochs = 15
HIDDEN = 96


class Forecast(nn.Module):
    """Days ``[batch, 24, 7]`` to colder or warmer."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(7, HIDDEN, 2, batch_first=True)
        self.head = nn.Sequential(nn.Linear(HIDDEN, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.cell(x)
        out: Tensor = self.head(states[:, -1])
        return out


def make_model() -> nn.Module:
    return Forecast()


train_data, eval_data, test_data = data.datasets(data.weather)
