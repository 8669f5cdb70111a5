"""Batches of any form, a tensor or a tuple or dict of them: moved, measured, joined, indexed.

Dicts come back as `AttrDict`, tuples and named tuples as themselves, lists as tuples.  The walks
are our own as ``torch.utils._pytree`` takes any Mapping that it does not know (transformers'
``BatchEncoding``) for a leaf.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autotune.worker.data.rows import Array
from autotune.worker.data.samples import LABELS

Kind = Literal["tensor", "tuple", "dict"]


class AttrDict(dict[str, Any]):
    """A dict whose keys are attributes too, as those of transformers' ``ModelOutput`` are."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """The same form with ``function`` applied to each tensor; anything else is left as it is."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return AttrDict({name: map_tensors(function, item) for name, item in value.items()})
    if isinstance(value, tuple | list):
        return _like(value, [map_tensors(function, item) for item in value])
    return value


def to(value: Any, device: torch.device | str, *, non_blocking: bool = False) -> Any:
    """A batch on a device."""
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking), value)


def size_of(value: Any) -> int:
    """Bytes of all its tensors."""
    return sum(tensor.nbytes for tensor in _tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


def take(value: Any, rows: NDArray[np.int64]) -> Any:
    """Some rows of a joined batch; a list holds one item a row."""
    if isinstance(value, Tensor):
        return value[torch.from_numpy(rows)]
    if isinstance(value, list):
        return [value[row] for row in rows.tolist()]
    if isinstance(value, Mapping):
        return AttrDict({name: take(item, rows) for name, item in value.items()})
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
        return AttrDict({name: join([piece[name] for piece in pieces]) for name in first})
    if isinstance(first, tuple):
        return _like(first, [join(list(column)) for column in zip(*pieces, strict=True)])
    return first


def fields(inputs: Any) -> list[tuple[str, Any]]:
    """The named fields of an input: ``input``, ``input_0`` ..., or a dict's keys but ``labels``."""
    if isinstance(inputs, Mapping):
        return [(str(n), v) for n, v in inputs.items() if n != LABELS and v is not None]
    if isinstance(inputs, tuple | list):
        return [(f"input_{i}", value) for i, value in enumerate(inputs)]
    return [("input", inputs)]


def kind_of(inputs: Any) -> Kind:
    """How the model is called: ``model(x)``, ``model(*x)`` or ``model(**x)``."""
    if isinstance(inputs, Mapping):
        return "dict"
    return "tuple" if isinstance(inputs, tuple | list) else "tensor"


def as_array(value: Any) -> Array:
    """A field as a NumPy array; bfloat16, which NumPy lacks, as float32."""
    if not isinstance(value, Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    array: Array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return array


def _like(value: Any, items: list[Any]) -> Any:
    """A tuple, or the user's own named tuple."""
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
