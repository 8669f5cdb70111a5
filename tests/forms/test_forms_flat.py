"""Outputs of every kind as a tuple of tensors, and what they are called."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from autotune.forms import changed, flat
from tests.support import stages


@dataclass
class Output:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


X = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("output", "kind", "names"),
    [
        (X, "tensor", ("output",)),
        ((X, X), "tuple", ("output_0", "output_1")),
        ((X, (X, X)), "tuple", ("output_0", "output_1_0", "output_1_1")),
        ({"a": X, "cache": [X]}, "dict", ("a",)),
        (Output(X), "dict", ("logits",)),
    ],
)
def test_every_kind_of_output_has_names(output, kind, names):
    assert flat.describe(output) == (kind, names)
    assert len(flat.tensors(output)) == len(names)


def test_an_output_without_a_tensor_is_refused_by_name():
    with pytest.raises(TypeError, match="float"):
        flat.describe(3.0)


class Both(nn.Module):
    def forward(self, a, b):
        return {"sum": a + b, "product": a * b}


def test_a_dict_model_takes_its_fields_in_the_order_of_the_names():
    model = flat.Flat(Both(), "dict", ("b", "a"))
    total, product = model(X, 2 * X)
    assert torch.equal(total, 3 * X)
    assert torch.equal(product, 2 * X)


def test_a_multiply_add_counts_as_two_and_attention_counts():
    assert flat.flops(lambda: nn.Linear(8, 4)(torch.ones(1, 8))) == 64
    q = torch.randn(1, 2, 5, 4)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert flat.flops(lambda: attention(q, q, q)) == 2 * 2 * 5 * 5 * (4 + 4)


def test_fused_transformer_layers_are_counted_too():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    fast = torch.backends.mha.get_fastpath_enabled()
    assert flat.flops(lambda: layer(torch.randn(1, 5, 8))) > 2 * 5 * 8 * 8 * 4
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_an_interface_is_changed_by_copy():
    about = stages.interface(3)
    assert changed(about, parameters=2).parameters == 2
    assert about.parameters == 1
