"""FLOPs of one operator call: PyTorch's formulas, and ours where ``FlopCounterMode`` counts 0.

A multiply-add is two FLOPs.  An operator without a formula counts as 0.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

Shape = Sequence[int]


def flops(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> float:
    """FLOPs of ``func(*args, **kwargs)``, which returned ``result``."""
    packet = func.overloadpacket
    ours = extra().get(packet)
    if ours is not None:
        shapes: Any = tree_map(lambda x: x.shape if isinstance(x, Tensor) else x, (args, kwargs))
        return float(ours(*shapes[0], **shapes[1]))
    formula = flop_registry.get(packet)
    return float(formula(*args, **kwargs, out_val=result)) if formula is not None else 0.0


@cache
def extra() -> dict[Any, Callable[..., int]]:
    """Formulas of operators that FlopCounterMode counts as 0, from shapes to FLOPs."""
    aten = torch.ops.aten
    table: dict[str, Callable[..., int]] = {
        "_scaled_dot_product_flash_attention_for_cpu": _attention,
        "mkldnn_rnn_layer": _rnn_layer,
        "mv": _matrix_vector,
        "addmv": _add_matrix_vector,
        "dot": _dot,
        "_trilinear": _trilinear,
    }
    return {getattr(aten, name): formula for name, formula in table.items() if hasattr(aten, name)}


def _attention(query: Shape, key: Shape, value: Shape, *rest: Any, **named: Any) -> int:
    """Query [b, h, s, d], key [b, h', t, d], value [b, h', t, e]: QK^T, then times V."""
    batch, heads, rows, width = query
    return 2 * batch * heads * rows * key[2] * (width + value[3])


def _rnn_layer(inputs: Shape, weight_ih: Shape, weight_hh: Shape, *rest: Any, **named: Any) -> int:
    """One layer and direction: [time, batch, in] against [4h, in], the state against [4h, h]."""
    return 2 * inputs[0] * inputs[1] * (prod(weight_ih) + prod(weight_hh))


def _matrix_vector(matrix: Shape, vector: Shape, *rest: Any, **named: Any) -> int:
    return 2 * prod(matrix)


def _add_matrix_vector(added: Shape, matrix: Shape, *rest: Any, **named: Any) -> int:
    return 2 * prod(matrix)


def _dot(left: Shape, right: Shape, *rest: Any, **named: Any) -> int:
    return 2 * prod(left)


def _trilinear(
    first: Shape,
    second: Shape,
    third: Shape,
    e1: Any,
    e2: Any,
    e3: Any,
    sums: Any,
    *rest: Any,
    **named: Any,
) -> int:
    """nn.Bilinear: x1 [b, i], W [o, i, j], x2 [b, j]: 2 b o i j for the larger product."""
    return 2 * first[0] * prod(second)
