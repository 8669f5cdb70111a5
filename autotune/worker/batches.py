"""The rows of each step, the same whatever the number of ranks.

    epoch's seeded permutation   p0 p1 p2 p3 p4 p5 p6 ...
    global batch of 4            [p0 p1 p2 p3] [p4 p5 p6 ...
    rank 0 of 2                   p0    p2      p4    p6
    rank 1 of 2                      p1    p3      p5

Where the data are plain tensors a batch is gathered by one index operation; whether that
equals the task's own collate is tried on a few rows, never assumed.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from autotune.worker.samples import Part

_TRIED_ROWS = 3
_EPOCH_STRIDE = 1_000_003  # apart, so that seed s epoch e+1 is not seed s+1 epoch e

Gather = Callable[[Tensor], tuple[Any, Any]]


class Batch(NamedTuple):
    """One rank's share of a global batch of ``of`` rows.

    A rank whose share is empty gets one row to run with and ``rows`` 0, for the collectives
    of its backward pass; its weight in the mean is then 0.
    """

    input: Any
    target: Any
    rows: int
    of: int


class Batches:
    """Batches of one rank.

    Args:
        dataset: map-style, yields ``(input, target)``.
        collate: the task's, from a list of samples to a batch.
        batch_size: rows of the global batch.
        paired: the model has batch norm; a last, short batch that gives any rank less than
            two rows is dropped, as statistics of one row are no statistics.
        device: torch's name of where batches are wanted.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        collate: Callable[[list[Any]], tuple[Any, Any]],
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        paired: bool = False,
        device: str = "cpu",
    ) -> None:
        self.rows = len(dataset)  # type: ignore[arg-type]
        self._gather = _gatherer(dataset, collate)
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._world = world
        self._paired = paired
        self._device = device

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of epoch ``number`` (any order of epochs gives the same rows)."""
        generator = torch.Generator().manual_seed(self._seed * _EPOCH_STRIDE + number)
        order = torch.randperm(self.rows, generator=generator)
        for chunk in torch.split(order, self._batch_size):
            of = len(chunk)
            short = of < self._batch_size
            if self._paired and short and of // self._world < 2:
                continue
            mine = chunk[self._rank :: self._world]
            yield self._batch(mine if len(mine) else chunk[:1], len(mine), of)

    def first(self, rows: int) -> Batch:
        """The first rows of the dataset, unshuffled."""
        count = min(rows, self.rows)
        return self._batch(torch.arange(count), count, count)

    def _batch(self, indices: Tensor, rows: int, of: int) -> Batch:
        input, target = self._gather(indices)
        return Batch(_moved(input, self._device), _moved(target, self._device), rows, of)


def _gatherer(dataset: Dataset[Any], collate: Callable[[list[Any]], tuple[Any, Any]]) -> Gather:
    def slow(indices: Tensor) -> tuple[Any, Any]:
        return collate([dataset[i] for i in indices.tolist()])

    found = _tensors(dataset)
    if found is None:
        return slow
    (inputs, targets), rows = found

    def fast(indices: Tensor) -> tuple[Any, Any]:
        at = indices if rows is None else rows[indices]
        return inputs[at], targets[at]

    few = torch.arange(min(_TRIED_ROWS, len(dataset)))  # type: ignore[arg-type]
    return fast if _same(fast(few), tuple(slow(few))) else slow


def _tensors(dataset: Any) -> tuple[tuple[Tensor, Tensor], Tensor | None] | None:
    """The two tensors under a dataset and the rows of them that it holds (None: all).

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
    found = _tensors(base)
    if found is None or own is None:
        return found
    tensors, rows = found
    return tensors, own if rows is None else rows[own]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return (
            isinstance(other, Tensor)
            and one.dtype == other.dtype
            and one.shape == other.shape
            and torch.equal(one.nan_to_num(), other.nan_to_num())
        )
    return len(one) == len(other) and all(map(_same, one, other))


def _moved(value: Any, device: str) -> Any:
    if device == "cpu":
        return value
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: _moved(item, device) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_moved(item, device) for item in value)
    return value
