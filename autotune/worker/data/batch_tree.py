"""Batches of any form, tensors or tuples or dicts of them: moved, sized, joined, indexed by row."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autotune.worker.contract.default_metrics import Named


def to(value: Any, device: torch.device | str) -> Any:
    """A batch on a device, whatever its form; tensors lose their graph only by ``no_grad``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return Named({name: to(item, device) for name, item in value.items()})
    if isinstance(value, tuple | list):
        return _like(value, [to(item, device) for item in value])
    return value


def size_of(value: Any) -> int:
    """Bytes of all its tensors."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    items = value.values() if isinstance(value, Mapping) else value
    if isinstance(value, Mapping | tuple | list):
        return sum(size_of(item) for item in items)
    return 0


def take(value: Any, rows: NDArray[np.int64]) -> Any:
    """Some rows of a joined batch; a list is one item a row."""
    if isinstance(value, Tensor):
        return value[torch.from_numpy(rows)]
    if isinstance(value, list):
        return [value[row] for row in rows.tolist()]
    if isinstance(value, Mapping):
        return Named({name: take(item, rows) for name, item in value.items()})
    if isinstance(value, tuple):
        return _like(value, [take(item, rows) for item in value])
    return value


def join(pieces: list[Any]) -> Any:
    """One batch of many; a list of one tensor a row where their shapes differ."""
    first = pieces[0]
    if isinstance(first, Tensor):
        if not first.dim():
            return torch.stack(pieces)
        if len({piece.shape[1:] for piece in pieces}) > 1:
            return [row for piece in pieces for row in piece]
        return torch.cat(pieces)
    if isinstance(first, Mapping):
        return Named({name: join([piece[name] for piece in pieces]) for name in first})
    if isinstance(first, tuple):
        return _like(first, [join(list(column)) for column in zip(*pieces, strict=True)])
    return first


def _like(value: Any, items: list[Any]) -> Any:
    """A tuple, or the user's own named tuple."""
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
