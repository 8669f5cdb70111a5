"""Traits against figures computed by hand: a multiply-add is two FLOPs."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from autotune.worker.survey.model_stats import count


class Attention(nn.Module):
    """One bare scaled-dot-product attention."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(query, key, value)


def test_linear() -> None:
    traits = count(nn.Linear(8, 4), (torch.randn(1, 8),))
    assert traits.flops_per_sample == 2 * 8 * 4
    assert traits.op_flops == {"addmm": 64.0}
    assert traits.op_calls == {"addmm": 1}
    assert traits.hidden_matrices == 0
    assert traits.parameters == 8 * 4 + 4
    assert traits.parameter_bytes == 4 * 36
    assert traits.activation_bytes_per_sample == 4 * 4
    assert traits.largest_op_bytes == 4 * (4 + 8 + 32 + 4)  # bias, input, weight, output
    assert traits.module_types == {"Linear": 1}


@pytest.mark.parametrize("inputs", [(8,), (1, 8), (1, 3, 8)])
def test_linear_of_any_rank(inputs: tuple[int, ...]) -> None:
    rows = 3 if len(inputs) == 3 else 1
    assert count(nn.Linear(8, 4), (torch.randn(inputs),)).flops_per_sample == rows * 64


def test_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.5))
    traits = count(model, (torch.randn(1, 3, 10, 10),))
    assert traits.flops_per_sample == 2 * (3 * 3 * 3) * 8 * (10 * 10)
    assert traits.has_batch_norm
    assert traits.has_dropout
    assert traits.buffer_bytes == 8 * 4 * 2 + 8  # running mean and variance, and a counter


def test_grouped_convolution() -> None:
    traits = count(nn.Conv1d(4, 8, 3, groups=2), (torch.randn(1, 4, 12),))
    assert traits.flops_per_sample == 2 * (2 * 3) * 8 * 10


def test_attention_of_fused_kernel() -> None:
    query, key, value = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4)
    traits = count(Attention(), (query, key, value))
    assert traits.flops_per_sample == 2 * 2 * 6 * 5 * (4 + 4)


def test_transformer_layer_is_not_hidden_by_its_fused_form() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    rows, width, hidden = 6, 8, 16
    projections = 2 * rows * width * (3 * width) + 2 * rows * width * width
    feed_forward = 2 * (2 * rows * width * hidden)
    attention = 2 * 2 * rows * rows * (4 + 4)
    traits = count(layer, (torch.randn(1, rows, width),))
    assert traits.flops_per_sample == projections + feed_forward + attention


@pytest.mark.parametrize(
    ("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)], ids=["lstm", "gru", "rnn"]
)
def test_recurrent(kind: type[nn.RNNBase], gates: int) -> None:
    model = kind(5, 7, batch_first=True)
    steps = 6
    expected = 2 * steps * gates * (5 * 7 + 7 * 7)
    assert count(model, (torch.randn(1, steps, 5),)).flops_per_sample == expected


def test_two_layers_both_directions() -> None:
    model = nn.LSTM(5, 7, num_layers=2, bidirectional=True, batch_first=True)
    steps = 6
    first, second = 2 * 4 * 7 * (5 + 7), 2 * 4 * 7 * (14 + 7)
    expected = 2 * steps * (first + second)
    assert count(model, (torch.randn(1, steps, 5),)).flops_per_sample == expected


def test_matrix_vector_and_bilinear() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bilinear = nn.Bilinear(3, 4, 5)

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return self.bilinear(left, right) + torch.mv(torch.ones(5, 3), left[0]).sum()

    traits = count(Both(), (torch.randn(1, 3), torch.randn(1, 4)))
    assert traits.op_flops == {"_trilinear": 2.0 * 5 * 3 * 4, "mv": 2.0 * 15}


def test_keyword_inputs() -> None:
    class Named(nn.Module):
        def forward(self, *, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return left @ right

    named = {"left": torch.randn(2, 3), "right": torch.randn(3, 4)}
    assert count(Named(), (), named).flops_per_sample == 2 * 2 * 3 * 4


def test_shared_storage_is_counted_once() -> None:
    embedding = nn.Embedding(10, 4)
    head = nn.Linear(4, 10, bias=False)
    head.weight = embedding.weight
    traits = count(nn.Sequential(embedding, head), (torch.zeros(1, 2, dtype=torch.long),))
    assert traits.parameters == 40
    assert traits.parameter_bytes == 160


def test_model_and_random_state_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fast = torch.backends.mha.get_fastpath_enabled()  # an artifact in bf16 may have left it off
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    count(model, (torch.randn(1, 4, generator=torch.Generator()),))
    assert torch.equal(torch.rand(1), expected)
    assert [m.training for m in model] == [True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled() == fast
