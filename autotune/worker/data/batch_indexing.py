"""From row numbers to a batch, by one index operation where the data are plain tensors.

    rows of a dataset --a TensorDataset under it--> inputs[rows], targets[rows]
                      --anything else-------------> collate([dataset[row], ...])

Whether the first gives what the task's own collate gives is tried on a few rows, never assumed.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from autotune.worker.data.samples import Part

_TRIED_ROWS = 3

Gather = Callable[[Tensor], tuple[Any, Any]]


def gatherer(
    dataset: Dataset[Any], collate: Callable[[list[Any]], tuple[Any, Any]]
) -> tuple[Gather, bool]:
    """From row numbers to a batch; and whether by one index operation."""
    read = reader(dataset, collate)
    found = tensors_under(dataset)
    if found is None:
        return read, False
    (inputs, targets), rows = found

    def fast(indices: Tensor) -> tuple[Any, Any]:
        at = indices if rows is None else rows[indices]
        return inputs[at], targets[at]

    few = torch.arange(min(_TRIED_ROWS, len(dataset)))  # type: ignore[arg-type]
    equal = same(fast(few), tuple(read(few)))
    return (fast, True) if equal else (read, False)


def reader(dataset: Dataset[Any], collate: Callable[[list[Any]], tuple[Any, Any]]) -> Gather:
    """From row numbers to a batch, row by row."""

    def read(indices: Tensor) -> tuple[Any, Any]:
        return collate([dataset[i] for i in indices.tolist()])

    return read


def tensors_under(dataset: Any) -> tuple[tuple[Tensor, Tensor], Tensor | None] | None:
    """The inputs and targets under a dataset, and the rows of them that it holds (None: all).

    Exact types only: a subclass may do anything in ``__getitem__``.
    """
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2:
        return (dataset.tensors[0], dataset.tensors[1]), None
    if type(dataset) is Subset:
        base: Any = dataset.dataset
        own: Tensor | None = torch.as_tensor(dataset.indices)
    elif type(dataset) is Part:
        base = dataset.base
        own = None if dataset.rows is None else torch.as_tensor(dataset.rows)
    else:
        return None
    found = tensors_under(base)
    if found is None or own is None:
        return found
    tensors, rows = found
    return tensors, own if rows is None else rows[own]


def same(one: Any, other: Any) -> bool:
    """Whether two batches hold the same values, whatever their form."""
    if isinstance(one, Tensor):
        return (
            isinstance(other, Tensor)
            and one.dtype == other.dtype
            and one.shape == other.shape
            and torch.equal(one.nan_to_num(), other.nan_to_num())
        )
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
