"""ResNet-18 on Fashion-MNIST, 28x28: the usual four stages, a stem for small images."""

from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._common import data

recipe = {
    "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "schedule": "one_cycle",
    "batch_size": 128,
}  # fmt: skip
epochs = 1


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2015, arXiv 1512.03385)."""

    def __init__(self, left: int, right: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(left, right, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(right)
        self.conv2 = nn.Conv2d(right, right, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(right)
        self.shortcut = nn.Sequential()
        if stride != 1 or left != right:
            self.shortcut = nn.Sequential(
                nn.Conv2d(left, right, 1, stride, bias=False), nn.BatchNorm2d(right)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def make_model() -> nn.Module:
    layers: list[nn.Module] = [
        nn.Conv2d(1, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
    ]  # fmt: skip
    for left, right, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
        layers += [Block(left, right, stride), Block(right, right, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


train_data, eval_data, test_data = data.datasets(data.fashion)
