"""A view of a model as positional tensors in, a tuple of tensors out; and the names of its outputs.

Exporters and pruners work on this view, so that tensor, tuple and dict models are one case.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

Kind = Literal["tensor", "tuple", "dict"]


class Flat(nn.Module):
    """``forward(*fields) -> tuple of tensors`` around a model called with ``kind``."""

    def __init__(self, model: nn.Module, kind: str, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.kind = kind
        self.names = tuple(names)

    def forward(self, *fields: Tensor) -> tuple[Tensor, ...]:
        return tensors(call(self.model, self.kind, self.names, fields))


def call(model: nn.Module, kind: str, names: Sequence[str], fields: Sequence[Tensor]) -> Any:
    """The model's own output for positional fields."""
    if kind == "dict":
        return model(**dict(zip(names, fields, strict=True)))
    return model(*fields)


def tensors(output: Any) -> tuple[Tensor, ...]:
    """The tensors of a tensor, tuple, dict or dataclass output, tuples within it flattened."""
    return tuple(value for _, value in _items(output))


def describe(output: Any) -> tuple[Kind, tuple[str, ...]]:
    """The output's kind and its tensors' names.

    Raises:
        TypeError: there is no tensor in it.
    """
    items = _items(output)
    if not items:
        raise TypeError(
            f"the model's output is {type(output).__name__} and holds no tensor; "
            "return a tensor, or a tuple or dict of tensors"
        )
    kind: Kind = "tensor" if isinstance(output, Tensor) else "tuple"
    if isinstance(output, Mapping) or hasattr(output, "__dataclass_fields__"):
        kind = "dict"
    return kind, tuple(name for name, _ in items)


def _items(output: Any) -> list[tuple[str, Tensor]]:
    if isinstance(output, Tensor):
        return [("output", output)]
    if isinstance(output, Mapping):
        return _leaves((str(key), value) for key, value in output.items())
    if hasattr(output, "__dataclass_fields__"):
        return _leaves((name, getattr(output, name)) for name in output.__dataclass_fields__)
    if isinstance(output, (tuple, list)):
        return _leaves((f"output_{i}", value) for i, value in enumerate(output))
    return []


def _leaves(pairs: Iterable[tuple[str, Any]]) -> list[tuple[str, Tensor]]:
    """Tensors and, in order, those in tuples (such as recurrent states).  Anything else is ignored,
    also lists, in which models return caches.
    """
    found: list[tuple[str, Tensor]] = []
    for name, value in pairs:
        if isinstance(value, Tensor):
            found.append((name, value))
        elif isinstance(value, tuple):
            found += _leaves((f"{name}_{i}", item) for i, item in enumerate(value))
    return found


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Within, the fused transformer layers are off: they hide their operators from FLOP counters
    and exporters.
    """
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def flops(run: Callable[[], Any]) -> float:
    """FLOPs of one call (a multiply-add is two): matrix products, convolutions, attention,
    recurrent layers.
    """
    from torch.utils.flop_counter import FlopCounterMode

    aten = torch.ops.aten  # FlopCounterMode counts these CPU operators as 0
    mapping: dict[Any, Callable[..., int]] = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten.mkldnn_rnn_layer: _rnn_layer,
    }
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    with torch.no_grad(), plain_attention(), counter:
        run()
    return float(counter.get_total_flops())


def _attention(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    """FLOPs of QK^T and of the product with V; shapes ``[batch, heads, rows, width]``."""
    return 2 * math.prod(query[:3]) * key[-2] * (query[-1] + value[-1])


def _rnn_layer(
    inputs: Sequence[int], gates: Sequence[int], state: Sequence[int], *_: Any, **__: Any
) -> int:
    """One direction: ``[time, batch, in]`` times ``[4h, in]``, and the state times ``[4h, h]``."""
    return 2 * inputs[0] * inputs[1] * (math.prod(gates) + math.prod(state))
