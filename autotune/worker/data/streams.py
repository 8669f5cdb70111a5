"""Training data that cannot be indexed: iterable datasets and the user's own loader.

    IterableDataset ── samples, distributed over ranks ─┐
    train_loader()  ── batches, taken apart ────────────┴─ Stream of ``rows`` rows an epoch

A stream that ends starts again; one that never ends is cut into epochs of ``rows`` rows.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.utils.data import Dataset

from autotune.errors import ContractError
from autotune.worker.data.batch_tree import map_tensors
from autotune.worker.data.samples import LABELS, Pair, pair

Make = Callable[[], Iterator[Any]]


class Stream(Dataset[Pair]):
    """``rows`` samples an epoch from an iterator that can be made anew.

    Indexing is for the first few rows: all samples up to an index are kept.
    """

    def __init__(self, make: Make, rows: int, where: str) -> None:
        self._make = make
        self._rows = rows
        self._where = where
        self._reader: Iterator[Any] = iter(())
        self._head: list[Pair] = []

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> Pair:
        if not self._head:
            self._reader = self.samples()
        while len(self._head) <= index:
            self._head.append(next(self._reader))
        return self._head[index]

    def samples(self, rank: int = 0, world: int = 1) -> Iterator[Pair]:
        """Every ``world``-th sample, from the ``rank``-th on, without end.

        Raises:
            ContractError: the stream is empty.
        """
        while True:
            count = 0
            for item in itertools.islice(self._make(), rank, None, world):
                count += 1
                yield pair(item)
            if count == 0:
                raise ContractError(
                    f"{self._where}: the training data yields no sample"
                    + (f" for rank {rank} of {world}" if world > 1 else "")
                )


def unbatched(make_loader: Callable[[], Any]) -> Make:
    """The samples of a loader's batches."""

    def samples() -> Iterator[Any]:
        for batch in make_loader():
            inputs, target = pair(batch)
            for row in range(rows_of(target)):
                item = _row(inputs, row)
                yield item if _labelled(batch) else (item, _row(target, row))

    return samples


def rows_of(target: Any) -> int:
    """Rows of a batch of targets."""
    if isinstance(target, Mapping):
        return rows_of(next(iter(target.values())))
    return rows_of(target[0]) if isinstance(target, tuple | list) else len(target)


def _labelled(batch: Any) -> bool:
    return isinstance(batch, Mapping) and LABELS in batch


def _row(value: Any, row: int) -> Any:
    return map_tensors(lambda tensor: tensor[row], value)
