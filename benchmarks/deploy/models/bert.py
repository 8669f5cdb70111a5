"""A small BERT-like classifier of film reviews' sentences, four layers of 256, trained here."""

from torch import Tensor, nn

from benchmarks._common import data

recipe = {
    "optimizer": "adamw", "lr": 5e-4, "weight_decay": 0.1, "schedule": "one_cycle",
    "batch_size": 64,
}  # fmt: skip
epochs = 4
VOCABULARY, LENGTH, HIDDEN, HEADS, LAYERS = 8000, 32, 256, 4, 4


class Layer(nn.Module):
    """Attention and feed-forward, normalised after each (Devlin et al. 2018, arXiv 1810.04805)."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.up, self.down = nn.Linear(HIDDEN, 4 * HIDDEN), nn.Linear(4 * HIDDEN, HIDDEN)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        rows, length, _ = x.shape
        q, k, v = (
            part(x).view(rows, length, HEADS, HIDDEN // HEADS).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        y = self.out(y.transpose(1, 2).reshape(rows, length, HIDDEN))
        x = self.norm1(x + self.dropout(y))
        y = self.down(nn.functional.gelu(self.up(x)))
        out: Tensor = self.norm2(x + self.dropout(y))
        return out


class Classifier(nn.Module):
    """Words ``[batch, length]`` to two classes; words numbered 0 are padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, HIDDEN)
        self.places = nn.Embedding(LENGTH, HIDDEN)
        self.norm, self.dropout = nn.LayerNorm(HIDDEN), nn.Dropout(0.1)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.head = nn.Linear(HIDDEN, 2)

    def forward(self, ids: Tensor) -> Tensor:
        real = ids != 0
        x = self.words(ids) + self.places.weight
        x = self.dropout(self.norm(x))
        for layer in self.layers:
            x = layer(x, real[:, None, None, :])
        weight = real.unsqueeze(-1).to(x.dtype)
        out: Tensor = self.head((x * weight).sum(1) / weight.sum(1).clamp(min=1))
        return out


def make_model() -> nn.Module:
    return Classifier()


train_data, eval_data, test_data = data.datasets(lambda part: data.words(part, VOCABULARY, LENGTH))
