"""Fifteen small models that no constant was fitted to: name -> (make, inputs).

CNNs, depthwise, transformers (encoder, causal, patches), attention-heavy, recurrent, MLPs,
embedding-heavy.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Make = Callable[[], nn.Module]
Inputs = Callable[[int], Tensor]


def _image(side: int, channels: int = 3) -> Inputs:
    return lambda b: torch.randn(b, channels, side, side)


def _rows(*shape: int) -> Inputs:
    return lambda b: torch.randn(b, *shape)


def _tokens(vocabulary: int, length: int) -> Inputs:
    return lambda b: torch.randint(0, vocabulary, (b, length))


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, left: int, right: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(left, right, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(right, right, 3, 1, 1, bias=False)
        self.n1, self.n2 = nn.BatchNorm2d(right), nn.BatchNorm2d(right)
        same = left == right and stride == 1
        self.short = nn.Identity() if same else nn.Conv2d(left, right, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.n1(self.one(x)))
        return functional.relu(self.n2(self.two(y)) + self.short(x))


def resnet() -> nn.Module:
    widths, layers = (32, 32, 64, 128, 256), [nn.Conv2d(3, 32, 3, 1, 1), nn.ReLU()]
    for i, (left, right) in enumerate(pairwise(widths)):
        layers += [Residual(left, right, 1 + (i > 0)), Residual(right, right, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    for left, right in pairwise((3, 32, 64, 128, 256)):
        layers += [nn.Conv2d(left, right, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256 * 16, 512), nn.ReLU(),
                         nn.Linear(512, 10))  # fmt: skip


def mobilenet() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU6()]
    for left, right in pairwise((32, 64, 128, 128, 256, 256)):
        layers += [nn.Conv2d(left, left, 3, 1 + (left != right), 1, groups=left, bias=False),
                   nn.BatchNorm2d(left), nn.ReLU6(), nn.Conv2d(left, right, 1, bias=False),
                   nn.BatchNorm2d(right), nn.ReLU6()]  # fmt: skip
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 100))


def convnext() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 4, 4)]
    for _ in range(3):
        layers += [nn.Conv2d(64, 64, 7, padding=3, groups=64), nn.GroupNorm(1, 64),
                   nn.Conv2d(64, 256, 1), nn.GELU(), nn.Conv2d(256, 64, 1)]  # fmt: skip
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 100))


def audio() -> nn.Module:
    layers: list[nn.Module] = []
    for left, right in pairwise((1, 32, 64, 128)):
        layers += [nn.Conv1d(left, right, 9, 4, 4), nn.BatchNorm1d(right), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(128, 35))


def mlp(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for left, right in pairwise(widths):
        layers += [nn.Linear(left, right), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class Encoder(nn.Module):
    """Tokens or patches through attention blocks."""

    def __init__(self, embed: nn.Module, width: int, heads: int, depth: int, causal: bool) -> None:
        super().__init__()
        self.embed, self.heads, self.causal = embed, heads, causal
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "n1": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * width),
                    "out": nn.Linear(width, width),
                    "n2": nn.LayerNorm(width),
                    "up": nn.Linear(width, 4 * width),
                    "down": nn.Linear(4 * width, width),
                }
            )
            for _ in range(depth)
        )
        self.head = nn.Linear(width, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        rows, length, width = x.shape
        block: Any
        for block in self.blocks:
            q, k, v = (
                t.reshape(rows, length, self.heads, width // self.heads).transpose(1, 2)
                for t in block["qkv"](block["n1"](x)).chunk(3, -1)
            )
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
            x = x + block["out"](y.transpose(1, 2).reshape(rows, length, width))
            x = x + block["down"](functional.gelu(block["up"](block["n2"](x))))
        out: Tensor = self.head(x.mean(1))
        return out


class Patches(nn.Module):
    """An image as a row of patches."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cut(x).flatten(2).transpose(1, 2)
        return out


class Recurrent(nn.Module):
    """A recurrent stack and its last state's head."""

    def __init__(self, cell: nn.Module, width: int) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.cell(x)[0][:, -1])
        return out


class Recommender(nn.Module):
    """Large tables, a small network on top."""

    def __init__(self, rows: int, width: int, fields: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width)
        self.top = mlp(width * fields, 256, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.top(self.table(x).flatten(1))
        return out


ZOO: dict[str, tuple[Make, Inputs]] = {
    "resnet": (resnet, _image(32)),
    "vgg": (vgg, _image(64)),
    "mobilenet": (mobilenet, _image(64)),
    "convnext": (convnext, _image(96)),
    "audio": (audio, _rows(1, 8000)),
    "mlp_wide": (lambda: mlp(784, 2048, 2048, 10), _rows(784)),
    "mlp_deep": (lambda: mlp(256, *[512] * 8, 10), _rows(256)),
    "mlp_small": (lambda: mlp(64, 128, 128, 10), _rows(64)),
    "bert": (lambda: Encoder(nn.Embedding(8000, 256), 256, 4, 4, False), _tokens(8000, 64)),
    "gpt": (lambda: Encoder(nn.Embedding(4000, 192), 192, 6, 6, True), _tokens(4000, 96)),
    "vit": (lambda: Encoder(Patches(192, 8), 192, 3, 4, False), _image(64)),
    "long": (lambda: Encoder(nn.Linear(16, 128), 128, 8, 2, False), _rows(384, 16)),
    "lstm": (lambda: Recurrent(nn.LSTM(64, 192, 2, batch_first=True), 192), _rows(32, 64)),
    "gru": (lambda: Recurrent(nn.GRU(128, 128, batch_first=True), 128), _rows(24, 128)),
    "recommender": (lambda: Recommender(200_000, 32, 26), _tokens(200_000, 26)),
}
