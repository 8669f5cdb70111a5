"""Matrix products and convolutions as a compiled model does them: by oneDNN, weights packed.

call(played) -> a call, or None where PyTorch packs none of the kind

A compiled model keeps convolutions' activations in channels-last order.

What this does not know: pointwise work that is fused into the call (next to nothing).
"""

from collections.abc import Callable
from typing import Any

import torch

from autotune.worker.survey.op_trace import Played


def call(one: Played) -> Callable[[], object] | None:
    """With weights of its own at each call of this."""
    backend: Any = torch.backends.mkldnn
    if not backend.is_available():
        return None
    try:
        if one.name in ("addmm", "mm") and one.operands[-1].parameter:
            return _linear(one)
        if one.name == "convolution" and not one.args[6]:
            return _convolution(one)
    except (RuntimeError, AttributeError, TypeError):  # a shape that it does not pack
        return None
    return None


def _linear(one: Played) -> Callable[[], object]:
    ops: Any = torch.ops.mkldnn
    rows, depth = one.operands[-2].shape
    source = torch.ones(rows, depth)
    weight = ops._reorder_linear_weight(torch.ones(one.operands[-1].shape[1], depth), rows)
    bias = torch.ones(one.operands[-1].shape[1]) if one.name == "addmm" else None
    return lambda: ops._linear_pointwise(source, weight, bias, "none", [], "")


def _convolution(one: Played) -> Callable[[], object]:
    ops: Any = torch.ops.mkldnn
    stride, padding, dilation = (list(x) for x in one.args[3:6])
    source = torch.ones(one.args[0].shape)
    if source.dim() == 4:
        source = source.contiguous(memory_format=torch.channels_last)
    weight = ops._reorder_convolution_weight(
        torch.ones(one.args[1].shape), padding, stride, dilation, one.args[8], list(source.shape)
    )
    how: tuple[Any, ...] = (padding, stride, dilation, one.args[8], "none", [], "")
    return lambda: ops._convolution_pointwise(source, weight, None, *how)
