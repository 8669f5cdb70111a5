"""Two inputs: a tumour's average cell and its worst cell, each with layers of its own.

Shows a dataset whose input is a tuple (the model is called with its items), and a custom `score`: a
missed malignant tumour costs more than a false alarm.

    autotune run examples/two_towers.py --time 3min
"""

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import Dataset

epochs = 20
MALIGNANT = 0


class TwoTowers(nn.Module):
    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.average = nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, width))
        self.worst = nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, width))
        self.head = nn.Linear(2 * width, 2)

    def forward(self, average: Tensor, worst: Tensor) -> Tensor:
        towers = [self.average(average), self.worst(worst)]
        return self.head(torch.relu(torch.cat(towers, dim=1)))


class Tumours(Dataset[tuple[tuple[Tensor, Tensor], Tensor]]):
    def __init__(self, *, training: bool) -> None:
        features, kind = load_breast_cancer(return_X_y=True)
        rows = train_test_split(range(len(kind)), train_size=0.5, stratify=kind, random_state=0)
        kept = rows[0 if training else 1]
        mean, spread = features[rows[0]].mean(axis=0), features[rows[0]].std(axis=0)
        self.x = torch.tensor((features[kept] - mean) / spread, dtype=torch.float32)
        self.y = torch.tensor(kind[kept])

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, row: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        average, worst = self.x[row, :10], self.x[row, 20:]
        return (average, worst), self.y[row]


def make_model() -> nn.Module:
    return TwoTowers()


def score(output: Tensor, target: Tensor) -> Tensor:
    """1 for a right answer, 0 for a false alarm, -4 for a missed malignant tumour."""
    said = output.argmax(1)
    missed = (target == MALIGNANT) & (said != MALIGNANT)
    return (said == target).float() - 4 * missed.float()


def train_data() -> Tumours:
    return Tumours(training=True)


def eval_data() -> Tumours:
    return Tumours(training=False)
