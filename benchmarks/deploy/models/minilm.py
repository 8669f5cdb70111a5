"""The pretrained sentence encoder MiniLM-L6 (22.7 M) with a classifier of film reviews on top.

The layers are BERT's, named as in the published weights, which are read where the package holds
them; the benchmark's checkpoint is one epoch of fine-tuning on top.
"""

from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks._common import data

recipe = {
    "optimizer": "adamw", "lr": 1e-4, "weight_decay": 0.01, "schedule": "one_cycle",
    "batch_size": 32,
}  # fmt: skip
epochs = 1
LENGTH, HIDDEN, HEADS, LAYERS = 40, 384, 12, 6


class Layer(nn.Module):
    """One encoder layer, with the published names."""

    def __init__(self) -> None:
        super().__init__()
        heads = {name: nn.Linear(HIDDEN, HIDDEN) for name in ("query", "key", "value")}
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict(heads),
                "output": nn.ModuleDict(
                    {"dense": nn.Linear(HIDDEN, HIDDEN), "LayerNorm": nn.LayerNorm(HIDDEN, 1e-12)}
                ),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(HIDDEN, 4 * HIDDEN)})
        self.output = nn.ModuleDict(
            {"dense": nn.Linear(4 * HIDDEN, HIDDEN), "LayerNorm": nn.LayerNorm(HIDDEN, 1e-12)}
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        rows, length, _ = x.shape
        attention: Any = self.attention
        heads, after = attention["self"], attention["output"]
        q, k, v = (
            heads[name](x).view(rows, length, HEADS, HIDDEN // HEADS).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        y = after["dense"](y.transpose(1, 2).reshape(rows, length, HIDDEN))
        x = after["LayerNorm"](x + y)
        y = self.output["dense"](nn.functional.gelu(self.intermediate["dense"](x)))
        out: Tensor = self.output["LayerNorm"](x + y)
        return out


class Encoder(nn.Module):
    """Word pieces and their mask, each ``[batch, length]``, to two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(30_522, HIDDEN),
                "position_embeddings": nn.Embedding(512, HIDDEN),
                "token_type_embeddings": nn.Embedding(2, HIDDEN),
                "LayerNorm": nn.LayerNorm(HIDDEN, 1e-12),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer() for _ in range(LAYERS))})
        self.head = nn.Linear(HIDDEN, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        table: Any = self.embeddings
        layers: Any = self.encoder["layer"]
        x = table["word_embeddings"](ids)
        x = x + table["position_embeddings"].weight[: ids.shape[1]]
        x = table["LayerNorm"](x + table["token_type_embeddings"].weight[0])
        real = mask != 0
        for layer in layers:
            x = layer(x, real[:, None, None, :])
        weight = mask.unsqueeze(-1).to(x.dtype)
        mean = (x * weight).sum(1) / weight.sum(1).clamp(min=1)
        out: Tensor = self.head(nn.functional.normalize(mean) * 8)
        return out


def make_model() -> nn.Module:
    model = Encoder()
    left = model.load_state_dict(load_file(data.minilm() / "model.safetensors"), strict=False)
    if set(left.missing_keys) != {"head.weight", "head.bias"}:
        raise ValueError(f"the published weights lack {left.missing_keys}")
    return model


class Pairs(Dataset[tuple[tuple[Tensor, Tensor], Tensor]]):
    """``((ids, mask), label)``."""

    def __init__(self, part: data.Part) -> None:
        self._all = tuple(map(torch.from_numpy, data.wordpieces(part, LENGTH)))

    def __len__(self) -> int:
        return len(self._all[0])

    def __getitem__(self, row: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        ids, mask, label = (values[row] for values in self._all)
        return (ids, mask), label


def train_data() -> Pairs:
    return Pairs("train")


def eval_data() -> Pairs:
    return Pairs("validation")


def test_data() -> Pairs:
    return Pairs("test")
