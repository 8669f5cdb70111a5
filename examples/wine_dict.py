"""Named inputs: the producer of a wine, from its acids and minerals and its phenols and colour.

Shows a dataset that yields dicts: the model is called by keyword, and the artifact's
`predict` takes the same names.

    autotune run examples/wine_dict.py --time 3min
"""

import torch
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import Dataset

epochs = 30


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.minerals = nn.Linear(5, 32)
        self.phenols = nn.Linear(8, 32)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, minerals: Tensor, phenols: Tensor) -> Tensor:
        return self.head(torch.cat([self.minerals(minerals), self.phenols(phenols)], dim=1))


class Wines(Dataset[tuple[dict[str, Tensor], int]]):
    def __init__(self, *, training: bool) -> None:
        features, maker = load_wine(return_X_y=True)
        rows = train_test_split(range(len(maker)), train_size=0.5, stratify=maker, random_state=0)
        kept = rows[0 if training else 1]
        mean, spread = features[rows[0]].mean(axis=0), features[rows[0]].std(axis=0)
        self.x = torch.tensor((features[kept] - mean) / spread, dtype=torch.float32)
        self.y = maker[kept].tolist()

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, row: int) -> tuple[dict[str, Tensor], int]:
        return {"minerals": self.x[row, :5], "phenols": self.x[row, 5:]}, self.y[row]


def make_model() -> nn.Module:
    return Net()


def train_data() -> Wines:
    return Wines(training=True)


def eval_data() -> Wines:
    return Wines(training=False)
