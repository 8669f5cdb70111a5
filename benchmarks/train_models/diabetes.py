"""Progress of diabetes after a year (scikit-learn): 242 train, 100 select, 100 confirm; R2."""

from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.train_models import _tables

_PARTS = _tables.parts("diabetes", (242, 342), real=True)


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)
    )


def quality(output: Tensor, target: Tensor) -> float:
    left = (output - target).square().sum()
    return float(1 - left / (target - target.mean()).square().sum())


def train_data() -> TensorDataset:
    return _PARTS["train"]


def eval_data() -> TensorDataset:
    return _PARTS["select"]


def confirm_data() -> TensorDataset:
    return _PARTS["confirm"]
