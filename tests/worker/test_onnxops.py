"""Operators by hand in ONNX Runtime: each kind that there is runs; others are refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autotune.worker import heap, onnxops, packed, tape

pytest.importorskip("onnxruntime")

X = torch.rand(2, 4, 6, 6)


def attend(x: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(x, x, x, is_causal=True)


class Wrapped(nn.Module):
    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.Conv2d(4, 8, 3, 2, 1), X),
        (nn.Linear(6, 3), X),
        (nn.Linear(6, 3), X[0, 0]),
        (nn.LayerNorm(6), X),
        (nn.GroupNorm(2, 4), X),
        (nn.MaxPool2d(2), X),
        (nn.AdaptiveAvgPool2d(1), X),
        (nn.Softmax(-1), X),
        (nn.Embedding(9, 4), torch.ones(2, 3, dtype=torch.int64)),
        (nn.GELU(), X),
        (nn.ReLU6(), X),
        (nn.SiLU(), X),
        (Wrapped(attend), X),
        (Wrapped(lambda x: x + x), X),
        (Wrapped(lambda x: x * 2), X),
    ],
)
def test_operators(module: nn.Module, x: Tensor) -> None:
    one = tape.record(module, (x,)).played[-1]
    call = onnxops.chain((one,), one.operands[-1].parameter, 2, 1)
    assert call is not None
    call()


def test_a_chain_has_a_copy_of_everything_for_each_of_its_weights() -> None:
    played = tape.record(nn.Sequential(nn.Linear(6, 6), nn.ReLU()), (X[0, 0],)).played
    assert onnxops.follows(played[1])
    call = onnxops.chain(played, False, 3, 1)
    assert call is not None
    call()


def test_what_is_not_known_is_refused() -> None:
    (one,) = tape.record(Wrapped(lambda x: x.cumsum(0)), (X,)).played
    assert onnxops.chain((one,), False, 1, 1) is None
    (double,) = tape.record(nn.Linear(6, 3).double(), (X[0, 0].double(),)).played
    assert onnxops.chain((double,), False, 1, 1) is None
    transposed = tape.record(nn.ConvTranspose2d(4, 4, 3), (X,)).played[-1]
    assert onnxops.chain((transposed,), False, 1, 1) is None


def test_packed_weights_give_what_the_operator_gives_in_shape() -> None:
    for module, x in ((nn.Linear(6, 3), X[0, 0]), (nn.Conv2d(4, 8, 3), X)):
        (one,) = tape.record(module, (x,)).played
        call = packed.call(one)
        if call is not None:  # PyTorch without oneDNN packs nothing
            result = call()
            assert isinstance(result, Tensor)
            assert tuple(result.shape) == one.made[0].shape
    (add,) = tape.record(Wrapped(lambda x: x + x), (X,)).played
    assert packed.call(add) is None


def test_the_heap_is_kept_where_there_is_glibc() -> None:
    assert heap.keep() in (True, False)
