"""A small decoder language model over characters of film reviews: four pre-norm layers of 192.

Quality is the share of the next characters that it names.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from benchmarks._common import data

recipe = {
    "optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.1, "schedule": "one_cycle",
    "batch_size": 64,
}  # fmt: skip
epochs = 5
VOCABULARY, LENGTH, HIDDEN, HEADS, LAYERS = 96, 64, 192, 6, 4


class Block(nn.Module):
    """Causal attention and feed-forward, each on a normalised input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.qkv, self.out = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.up, self.down = nn.Linear(HIDDEN, 4 * HIDDEN), nn.Linear(4 * HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, _ = x.shape
        q, k, v = (
            part.view(rows, length, HEADS, HIDDEN // HEADS).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(rows, length, HIDDEN))
        out: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return out


class Decoder(nn.Module):
    """Characters ``[batch, length]`` to what may follow each ``[batch, length, 96]``."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(VOCABULARY, HIDDEN), nn.Embedding(LENGTH, HIDDEN)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.places.weight
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x))
        return out


def make_model() -> nn.Module:
    return Decoder()


def _set(part: data.Part, rows: int | None = None) -> TensorDataset:
    arrays = data.characters(part, LENGTH)
    return TensorDataset(*(torch.from_numpy(values[:rows]) for values in arrays))


def train_data() -> TensorDataset:
    return _set("train")


def eval_data() -> TensorDataset:
    return _set("validation", 800)


def test_data() -> TensorDataset:
    return _set("test", 3000)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def score(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(-1) == target).float().mean(1)
