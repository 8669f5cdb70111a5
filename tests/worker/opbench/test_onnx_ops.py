"""Operators by hand in ONNX Runtime: each kind that there is runs; others are refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autotune.runtimes._heap import keep_freed_memory
from autotune.worker.opbench import onednn_ops, onnx_ops
from autotune.worker.survey import op_trace

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
    one = op_trace.record(module, (x,)).played[-1]
    call = onnx_ops.chain((one,), one.operands[-1].parameter, 2, 1)
    assert call is not None
    call()


def test_a_chain_has_a_copy_of_everything_for_each_of_its_weights() -> None:
    played = op_trace.record(nn.Sequential(nn.Linear(6, 6), nn.ReLU()), (X[0, 0],)).played
    assert onnx_ops.follows(played[1])
    call = onnx_ops.chain(played, False, 3, 1)
    assert call is not None
    call()


def test_what_is_not_known_is_refused() -> None:
    (one,) = op_trace.record(Wrapped(lambda x: x.cumsum(0)), (X,)).played
    assert onnx_ops.chain((one,), False, 1, 1) is None
    (double,) = op_trace.record(nn.Linear(6, 3).double(), (X[0, 0].double(),)).played
    assert onnx_ops.chain((double,), False, 1, 1) is None
    transposed = op_trace.record(nn.ConvTranspose2d(4, 4, 3), (X,)).played[-1]
    assert onnx_ops.chain((transposed,), False, 1, 1) is None


def test_packed_weights_give_what_the_operator_gives_in_shape() -> None:
    for module, x in ((nn.Linear(6, 3), X[0, 0]), (nn.Conv2d(4, 8, 3), X)):
        (one,) = op_trace.record(module, (x,)).played
        call = onednn_ops.call(one)
        if call is not None:  # PyTorch without oneDNN packs nothing
            result = call()
            assert isinstance(result, Tensor)
            assert tuple(result.shape) == one.made[0].shape
    (add,) = op_trace.record(Wrapped(lambda x: x + x), (X,)).played
    assert onednn_ops.call(add) is None


def test_freed_memory_is_kept_where_there_is_glibc() -> None:
    keep_freed_memory()
