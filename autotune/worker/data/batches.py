"""The rows of each step, the same whatever the number of ranks.

    epoch's seeded permutation   p0 p1 p2 p3 p4 p5 p6 ...
    global batch of 4            [p0 p1 p2 p3] [p4 p5 p6 ...
    rank 0 of 2                   p0    p2      p4    p6
    rank 1 of 2                      p1    p3      p5

Data that cannot be indexed keep the user's order: samples of a stream are distributed as above,
batches of the user's own loader are taken as they come; an epoch is a number of rows.
"""

import itertools
import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from autotune.worker.data.batch_indexing import gatherer
from autotune.worker.data.batch_tree import map_tensors, to
from autotune.worker.data.samples import pair
from autotune.worker.data.streams import Stream, rows_of
from autotune.worker.user_file.errors import guard

_EPOCH_STRIDE = 1_000_003  # between seeds: else seed s, epoch e + 1 were seed s + 1, epoch e


class Batch(NamedTuple):
    """One rank's share of a global batch of ``of`` rows.

    A rank whose share is empty gets one row to run with and ``rows`` 0, for the collectives
    of its backward pass; its weight in the mean is then 0.
    """

    input: Any
    target: Any
    rows: int
    of: int


class BatchSource(Protocol):
    """What the training loop takes its batches from."""

    rows: int

    @property
    def steps(self) -> int:
        """Batches of an epoch; an upper bound where only the user's loader knows."""

    @property
    def divisible(self) -> bool:
        """Whether an epoch can be resumed in its middle."""

    @property
    def loadable(self) -> bool:
        """Whether worker processes could load the batches."""

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch ``number`` (from 1), from its step ``start`` on."""

    def skip(self, epochs: int) -> None:
        """Pass over epochs that another process has trained on."""

    def first(self, rows: int) -> Batch: ...


class RankShare(NamedTuple):
    """Which part of a global batch of ``batch_size`` rows is this rank's, and where it goes.

    ``batch_norm``: the model has some, so that a last, short batch which gives any rank less than
    two rows, which have no variance, is dropped.  ``workers``: processes that load batches, where
    these are not indexed from tensors.
    """

    batch_size: int
    rank: int = 0
    world: int = 1
    batch_norm: bool = False
    device: str = "cpu"
    threads: int = 1
    workers: int = 0


def batches_of(loaded: Any, data: Any, share: RankShare, seed: int) -> BatchSource:
    """The batches of a task's training data, whatever form it has.

    Args:
        loaded: the `LoadedTask`.
        data: its *train* or *calibration* part.
        share: this rank's.
        seed: of the shuffling, where that is ours.
    """
    if loaded.train_loader is not None:
        return LoaderBatches(loaded, len(data), share)
    if isinstance(data, Stream):
        return StreamBatches(data, loaded.collate, share)
    return Batches(data, loaded.collate, share, seed)


class StreamBatches:
    """Batches of the samples of a stream; each epoch goes on where the one before ended."""

    divisible = loadable = False

    def __init__(
        self, stream: Stream, collate: Callable[[list[Any]], tuple[Any, Any]], share: RankShare
    ) -> None:
        self.rows = len(stream)
        self._stream = stream
        self._collate = collate
        self._share = share
        self._samples = stream.samples(share.rank, share.world)

    @property
    def steps(self) -> int:
        return _steps(self.rows, self._share)

    def skip(self, epochs: int) -> None:
        """Read past the samples that this rank takes in these epochs."""
        of = self._share
        sizes = [min(of.batch_size, self.rows - at) for at in self._starts()]
        taken = sum(max(1, len(range(of.rank, size, of.world))) for size in sizes)
        for _ in itertools.islice(self._samples, epochs * taken):
            pass

    def _starts(self) -> range:
        return range(0, self.steps * self._share.batch_size, self._share.batch_size)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The next ``rows`` rows; ``number`` does not matter."""
        del number
        assert start == 0
        size, world = self._share.batch_size, self._share.world
        for at in self._starts():
            of = min(size, self.rows - at)
            mine = len(range(self._share.rank, of, world))
            yield self._batch(self._samples, max(1, mine), mine, of)

    def first(self, rows: int) -> Batch:
        """The stream's first rows."""
        count = min(rows, self.rows)
        return self._batch(self._stream.samples(), count, count, count)

    def _batch(self, samples: Iterator[Any], count: int, rows: int, of: int) -> Batch:
        input, target = self._collate(list(itertools.islice(samples, count)))
        device = self._share.device
        return Batch(_moved(input, device), _moved(target, device), rows, of)


class LoaderBatches:
    """Batches of the user's own ``train_loader(batch_size, rank, world, workers)``.

    ``batch_size`` is the rank's share of the global batch; ``workers`` are the cores that the
    training threads leave free.
    """

    divisible = loadable = False

    def __init__(self, loaded: Any, rows: int, share: RankShare) -> None:
        self.rows = rows
        self._loaded = loaded
        self._share = share
        spare = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        self._workers = max(0, spare - share.threads * share.world) // share.world
        self._loader = self._made(self._workers)
        self._most = math.ceil(rows / share.batch_size)

    @property
    def steps(self) -> int:
        try:
            return min(self._most, len(self._loader))
        except TypeError:  # no length, as of an iterable dataset
            return self._most

    def skip(self, epochs: int) -> None:
        """What the loader does in an epoch follows from its number and the random state."""
        del epochs

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """One pass, or as many steps as ``rows`` rows are where the loader has no end."""
        assert start == 0
        sampler = getattr(self._loader, "sampler", None)
        if sampler is not None and hasattr(sampler, "set_epoch"):
            sampler.set_epoch(number)
        for batch in itertools.islice(self._loader, self._most):
            yield self._batch(batch)

    def first(self, rows: int) -> Batch:
        """The first batch, whatever its size."""
        del rows
        return self._batch(next(iter(self._made(0))))

    def _made(self, workers: int) -> Any:
        share, loaded = self._share, self._loaded
        size = max(1, share.batch_size // share.world)
        call = f"train_loader({size}, {share.rank}, {share.world}, {workers})"
        with guard(loaded.where, call, loaded.path):
            return loaded.train_loader(size, share.rank, share.world, workers)

    def _batch(self, batch: Any) -> Batch:
        input, target = pair(batch)
        input = tuple(input) if isinstance(input, list) else input
        device, rows = self._share.device, rows_of(target)
        moved = _moved(input, device), _moved(target, device)
        return Batch(*moved, rows, rows * self._share.world)


class Batches:
    """Batches of a map-style dataset of ``(input, target)``, shuffled anew for each epoch."""

    divisible = True

    def __init__(
        self,
        dataset: Dataset[Any],
        collate: Callable[[list[Any]], tuple[Any, Any]],
        share: RankShare,
        seed: int,
    ) -> None:
        self.rows = len(dataset)  # type: ignore[arg-type]
        self._gather, gathered = gatherer(dataset, collate)
        self.loadable = not gathered
        self._slow = None if gathered or not share.workers else (dataset, collate)
        self._share = share
        self._seed = seed

    @property
    def steps(self) -> int:
        return _steps(self.rows, self._share)

    def skip(self, epochs: int) -> None:
        """Nothing to do: an epoch's order follows from its number."""
        del epochs

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch ``number`` (any order of epochs gives the same rows)."""
        generator = torch.Generator().manual_seed(self._seed * _EPOCH_STRIDE + number)
        order = torch.randperm(self.rows, generator=generator)
        share = self._share
        chunks = torch.split(order, share.batch_size)[start : self.steps]
        mine = [chunk[share.rank :: share.world] for chunk in chunks]
        taken = [own if len(own) else chunk[:1] for own, chunk in zip(mine, chunks, strict=True)]
        pairs = self._loaded(taken, number) if self._slow else map(self._gather, taken)
        for (input, target), own, chunk in zip(pairs, mine, chunks, strict=True):
            yield self._moved(input, target, len(own), len(chunk))

    def _loaded(self, taken: list[Tensor], number: int) -> Iterator[tuple[Any, Any]]:
        from autotune.worker.data.loader_workers import loaded

        assert self._slow is not None
        return loaded(
            *self._slow,
            [rows.tolist() for rows in taken],
            workers=self._share.workers,
            seed=self._seed * _EPOCH_STRIDE + number,
            pinned=self._share.device != "cpu",
        )

    def first(self, rows: int) -> Batch:
        """The first rows of the dataset, unshuffled."""
        count = min(rows, self.rows)
        return self._moved(*self._gather(torch.arange(count)), count, count)

    def _moved(self, input: Any, target: Any, rows: int, of: int) -> Batch:
        device = self._share.device
        return Batch(_moved(input, device), _moved(target, device), rows, of)


def microbatches(batch: Batch, count: int) -> list[Batch]:
    """``count`` nearly equal parts of a batch, fewer where it has fewer rows."""
    rows = max(1, batch.rows)
    if count <= 1 or rows == 1:
        return [batch]
    size = math.ceil(rows / count)
    cuts = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
    return [
        Batch(
            _cut(batch.input, cut, rows),
            _cut(batch.target, cut, rows),
            cut.stop - cut.start,
            batch.of,
        )
        for cut in cuts
    ]


def _cut(value: Any, cut: slice, rows: int) -> Any:
    """Some rows of a batched value; a tensor without a row for each sample is left whole."""
    return map_tensors(lambda t: t[cut] if t.ndim and len(t) == rows else t, value)


def _steps(rows: int, share: RankShare) -> int:
    """Global batches of an epoch (see `RankShare.batch_norm`)."""
    whole, left = divmod(rows, share.batch_size)
    dropped = share.batch_norm and left // share.world < 2
    return whole + (1 if left and not dropped else 0)


def _moved(value: Any, device: str) -> Any:
    return value if device == "cpu" else to(value, device, non_blocking=True)
