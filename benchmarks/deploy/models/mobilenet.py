"""A MobileNetV2-like net on Fashion-MNIST, 28x28: inverted residuals, depthwise, ReLU6."""

from torch import Tensor, nn

from benchmarks._common import data

recipe = {
    "optimizer": "adamw", "lr": 3e-3, "weight_decay": 0.02, "schedule": "one_cycle",
    "batch_size": 128,
}  # fmt: skip
epochs = 2
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 3, 2), (6, 96, 2, 1))
"""Expansion, channels, blocks, stride (Sandler et al. 2018, arXiv 1801.04381), cut for 28x28."""


def _conv(left: int, right: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(left, right, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(right), nn.ReLU6()]


class Inverted(nn.Module):
    """Widen, filter each channel, narrow."""

    def __init__(self, left: int, right: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = left * expansion
        self.residual = stride == 1 and left == right
        self.body = nn.Sequential(
            *(_conv(left, wide, 1) if expansion > 1 else []),
            *_conv(wide, wide, 3, stride, groups=wide),
            *_conv(wide, right, 1)[:2],
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return x + out if self.residual else out


def make_model() -> nn.Module:
    layers, left = _conv(1, 32, 3, 2), 32
    for expansion, right, blocks, stride in _STAGES:
        for number in range(blocks):
            layers.append(Inverted(left, right, 1 if number else stride, expansion))
            left = right
    layers += [*_conv(left, 640, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Linear(640, 10))


train_data, eval_data, test_data = data.datasets(data.fashion)
