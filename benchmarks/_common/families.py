"""Random small models of seven families, and inputs for them.

    draw(rng) -> Sample(family, module, inputs(batch))        sizes log-uniform within a family

Sizes are such that a call takes some 0.5 to 50 ms on a CPU.
"""

import math
import random
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks._common.zoo import Recurrent


class Sample(NamedTuple):
    """``inputs(batch)`` makes one call's input."""

    family: str
    module: nn.Module
    inputs: Callable[[int], Tensor]


def _size(rng: random.Random, low: int, high: int, step: int = 8) -> int:
    """Log-uniform, on a multiple of ``step``."""
    value = math.exp(rng.uniform(math.log(low), math.log(high)))
    return max(step, round(value / step) * step)


def mlp(rng: random.Random) -> Sample:
    widths = [_size(rng, 512, 4096) for _ in range(rng.randint(2, 5))]
    layers: list[nn.Module] = []
    for left, right in pairwise(widths):
        layers += [nn.Linear(left, right), nn.ReLU()]
    layers.append(nn.Linear(widths[-1], 10))
    return Sample("mlp", nn.Sequential(*layers), lambda b: torch.randn(b, widths[0]))


def cnn(rng: random.Random) -> Sample:
    side, channels = rng.choice((28, 56)), _size(rng, 32, 128)
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1), nn.ReLU()]
    for _ in range(rng.randint(1, 4)):
        kernel, stride = rng.choice((1, 3, 3, 5)), rng.choice((1, 1, 2))
        wider = _size(rng, 64, 256)
        layers += [
            nn.Conv2d(channels, wider, kernel, stride=stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(wider),
            nn.ReLU(),
        ]
        channels = wider
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
    return Sample("cnn", nn.Sequential(*layers), lambda b: torch.randn(b, 3, side, side))


def depthwise(rng: random.Random) -> Sample:
    side, channels = rng.choice((28, 56)), _size(rng, 64, 256)
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1), nn.ReLU6()]
    for _ in range(rng.randint(1, 4)):
        wider = _size(rng, 96, 384)
        layers += [
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU6(),
            nn.Conv2d(channels, wider, 1),
        ]
        channels = wider
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
    return Sample("depthwise", nn.Sequential(*layers), lambda b: torch.randn(b, 3, side, side))


def transformer(rng: random.Random, family: str = "transformer") -> Sample:
    heads = rng.choice((4, 8))
    width = _size(rng, 128, 768, step=8 * heads)
    long = family == "attention"
    length = _size(rng, 128, 512) if long else _size(rng, 32, 128)
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, batch_first=True)
    encoder = nn.TransformerEncoder(layer, rng.randint(1, 3), enable_nested_tensor=False)
    return Sample(family, encoder, lambda b: torch.randn(b, length, width))


def attention(rng: random.Random) -> Sample:
    return transformer(rng, "attention")


def recurrent(rng: random.Random) -> Sample:
    width, inner, length = _size(rng, 64, 512), _size(rng, 256, 1024), _size(rng, 16, 64)
    kind = rng.choice((nn.LSTM, nn.GRU))
    cell = kind(width, inner, rng.randint(1, 2), batch_first=True)
    return Sample("recurrent", Recurrent(cell, inner), lambda b: torch.randn(b, length, width))


class _Bag(nn.Module):
    def __init__(self, rows: int, width: int, inner: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width)
        self.head = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, 10))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.table(x).mean(1))
        return out


def embedding(rng: random.Random) -> Sample:
    rows, width, length = _size(rng, 5000, 100_000), _size(rng, 64, 512), _size(rng, 16, 128)
    bag = _Bag(rows, width, _size(rng, 512, 4096))
    return Sample("embedding", bag, lambda b: torch.randint(0, rows, (b, length)))


FAMILIES: tuple[Callable[[random.Random], Sample], ...] = (
    mlp,
    cnn,
    depthwise,
    transformer,
    attention,
    recurrent,
    embedding,
)


def draw(rng: random.Random, number: int) -> Sample:
    """The families in turn."""
    sample = FAMILIES[number % len(FAMILIES)](rng)
    sample.module.eval()
    return sample
