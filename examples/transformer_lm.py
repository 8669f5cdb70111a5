r"""A decoder-only language model whose width and depth are arguments.

At its small default size it trains in seconds on a generated text; at any size it can be planned
for a machine that you do not have, on the meta device, without allocating weights:

    autotune run examples/transformer_lm.py --time 3min
    autotune plan examples/transformer_lm.py --profile h100-sxm-x8 --profile a100-80-sxm-x8
    autotune plan examples/transformer_lm.py --profile h100-sxm -- \
        --layers 80 --hidden 8192 --heads 64 --kv-heads 8 --ffn 28672 --gated \
        --vocabulary 32000 --sequence 4096
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

parser = argparse.ArgumentParser(description="a decoder-only language model")
parser.add_argument("--layers", type=int, default=2)
parser.add_argument("--hidden", type=int, default=64)
parser.add_argument("--heads", type=int, default=4)
parser.add_argument("--kv-heads", type=int, help="grouped-query attention  [default: --heads]")
parser.add_argument("--ffn", type=int, help="width of the feed-forward part  [default: 4x]")
parser.add_argument("--gated", action="store_true", help="SwiGLU in place of GELU")
parser.add_argument("--vocabulary", type=int, default=64)
parser.add_argument("--sequence", type=int, default=32)
parser.add_argument("--rows", type=int, help="of text  [default: 1500, few if it is long]")
opt = parser.parse_args()

recipe = {"optimizer": "adamw", "lr": 3e-3, "batch_size": 64}
epochs = 5


class Block(nn.Module):
    """Pre-norm attention and feed-forward, [batch, sequence, hidden] -> the same."""

    def __init__(self, hidden: int, heads: int, kv_heads: int, ffn: int, gated: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = heads, kv_heads, hidden // heads
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv = nn.Linear(hidden, (heads + 2 * kv_heads) * self.size)
        self.out = nn.Linear(hidden, hidden)
        self.up = nn.Linear(hidden, ffn)
        self.gate = nn.Linear(hidden, ffn) if gated else None
        self.down = nn.Linear(ffn, hidden)

    def forward(self, x: Tensor) -> Tensor:
        batch, sequence, _ = x.shape
        sizes = [n * self.size for n in (self.heads, self.kv_heads, self.kv_heads)]
        parts = self.qkv(self.norm1(x)).split(sizes, dim=-1)
        q, k, v = (p.view(batch, sequence, -1, self.size).transpose(1, 2) for p in parts)
        if self.kv_heads != self.heads:
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, sequence, -1))
        y = self.norm2(x)
        inner = F.gelu(self.up(y)) if self.gate is None else F.silu(self.gate(y)) * self.up(y)
        return x + self.down(inner)


class Decoder(nn.Module):
    """Token numbers [batch, sequence] -> logits [batch, sequence, vocabulary]."""

    def __init__(self) -> None:
        super().__init__()
        shape = opt.hidden, opt.heads, opt.kv_heads or opt.heads, opt.ffn or 4 * opt.hidden
        self.tokens = nn.Embedding(opt.vocabulary, opt.hidden)
        self.places = nn.Embedding(opt.sequence, opt.hidden)
        self.blocks = nn.ModuleList(Block(*shape, opt.gated) for _ in range(opt.layers))
        self.norm = nn.LayerNorm(opt.hidden)
        self.head = nn.Linear(opt.hidden, opt.vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def make_model() -> nn.Module:
    return Decoder()


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def score(output: Tensor, target: Tensor) -> Tensor:
    """Share of next tokens that are predicted correctly, per row."""
    return (output.argmax(-1) == target).float().mean(dim=1)


def text() -> TensorDataset:
    """Sentences of counting up or down in steps of 1 to 3, from a random start, with some noise."""
    rows = opt.rows or max(64, min(1500, 48_000 // opt.sequence))
    draw = torch.Generator().manual_seed(0)
    start = torch.randint(0, opt.vocabulary, (rows, 1), generator=draw)
    step = torch.randint(1, 4, (rows, 1), generator=draw)
    step = step * (1 - 2 * torch.randint(0, 2, (rows, 1), generator=draw))
    tokens = (start + step * torch.arange(opt.sequence + 1)) % opt.vocabulary
    noise = torch.rand(tokens.shape, generator=draw) < 0.02
    tokens[noise] = torch.randint(0, opt.vocabulary, (int(noise.sum()),), generator=draw)
    return TensorDataset(tokens[:, :-1], tokens[:, 1:])


def train_data() -> TensorDataset:
    return text()
