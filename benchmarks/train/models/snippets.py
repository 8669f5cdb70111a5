"""Whether a film review's sentence praises: 7,000 train, 1,000 validation, some 2,600 test."""

import torch
from torch import Tensor, nn

from benchmarks._common import data

VOCABULARY, LENGTH = 5000, 40


class Mean(nn.Module):
    """The mean of the words' embeddings, and a layer above."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 64, padding_idx=0)
        self.hidden = nn.Linear(64, 64)
        self.last = nn.Linear(64, 2)

    def forward(self, ids: Tensor) -> Tensor:
        there = (ids != 0).unsqueeze(-1).float()
        mean = (self.words(ids) * there).sum(1) / there.sum(1).clamp(min=1.0)
        out: Tensor = self.last(torch.relu(self.hidden(mean)))
        return out


def make_model() -> nn.Module:
    return Mean()


train_data, eval_data, test_data = data.datasets(lambda part: data.words(part, VOCABULARY, LENGTH))
