"""Training data of recovery: batches of rows and the dense model's outputs for them.

    training rows ─┬─ held back   the loss after each epoch, never trained on
                   └─ the rest    shuffled by seed, in batches ─┐
    dense model ── its outputs, cached where rows are constant ┴─ DistillationBatch

Rows that are equal when read twice are stacked once and then indexed, so that neither the user's
``__getitem__`` nor the dense model runs again in each epoch.  Rows that change (augmentation),
rows of the user's own ``collate`` and streams are read in each epoch, and the dense model runs on
each batch.  Does not notice a dataset whose first rows are constant and later ones are not.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from autotune.forms.flat import tensors
from autotune.worker.contract import LoadedTask
from autotune.worker.data import batch_indexing, batch_tree, batches, samples
from autotune.worker.data.samples import LABELS
from autotune.worker.data.streams import Stream, rows_of

KEPT_BYTES = 1 << 30
"""Stacked rows, or outputs of the dense model, that are kept in memory."""
_LOOKED_AT = 16  # rows read twice: misses an augmentation of probability 1/2 once in 65,000
_MOST_HELD = 1024
_FEW = 100  # rows; of fewer none are held back
_CHUNK = 256

Outputs = tuple[Tensor, ...]


class DistillationBatch(NamedTuple):
    """One batch, and the dense model's outputs for it (None without a teacher)."""

    input: Any
    target: Any
    teacher_outputs: Outputs | None
    rows: int


class Teacher:
    """The dense model, whose outputs the compressed one learns to give.

    Args:
        model: makes the dense model.
        path: a safetensors file that caches its outputs for other builds of the same model.
        call: runs a model on a batch.
    """

    def __init__(
        self, model: Callable[[], nn.Module], path: Path | None, call: Callable[..., Any]
    ) -> None:
        self._make, self._path, self._call = model, path, call

    @functools.cached_property
    def _model(self) -> nn.Module:
        return self._make().eval().requires_grad_(False)

    def outputs(self, inputs: Any) -> Outputs:
        """Its floating-point outputs for one batch."""
        with torch.no_grad():
            return outputs(self._call(self._model, inputs))

    def all(self, inputs: Callable[[Tensor], Any], rows: int) -> Outputs | None:
        """Its outputs for rows 0 to ``rows``, read from the file where that exists; None where they
        are larger than `KEPT_BYTES` or have no batch dimension.
        """
        if self._path is not None and self._path.is_file():
            return _read(self._path, rows)
        pieces: list[Outputs] = []
        for chunk in torch.split(torch.arange(rows), _CHUNK):
            pieces.append(tuple(tensor.cpu() for tensor in self.outputs(inputs(chunk))))
            if sum(map(batch_tree.size_of, pieces[0])) / len(chunk) * rows > KEPT_BYTES:
                return None
            if any(len(tensor) != len(chunk) for tensor in pieces[-1]):
                return None  # no batch dimension
        found: Outputs = tuple(torch.cat(column) for column in zip(*pieces, strict=True))
        if self._path is not None:
            _write(self._path, found)
        return found


def outputs(output: Any) -> Outputs:
    """The floating-point tensors of an output that have a batch dimension."""
    return tuple(o for o in tensors(output) if o.is_floating_point() and o.dim())


class DistillationData:
    """Batches of the training rows with the dense model's outputs.

    Args:
        loaded: the task.
        data: its *train* or *calibration* part.
        size: rows of a batch.
        seed: of the order, and of the choice of held-back rows.
        teacher: the dense model, or None.
        paired: the model has batch norm, which cannot train on a batch of one row.
    """

    def __init__(
        self,
        loaded: LoadedTask,
        data: Any,
        size: int,
        seed: int,
        teacher: Teacher | None = None,
        *,
        paired: bool = False,
    ) -> None:
        self._loaded, self._data, self._seed = loaded, data, seed
        self._teacher, self._paired = teacher, paired
        self._size = min(size, len(data))
        self._epochs: batches.BatchSource | None = None
        if loaded.train_loader is not None or isinstance(data, Stream):
            share = batches.RankShare(size, batch_norm=paired)
            self._epochs = batches.batches_of(loaded, data, share, seed)
            return
        self._gather, kept = gatherer(loaded, data)
        self._teacher_outputs: Outputs | None = None
        if kept and teacher is not None:
            self._teacher_outputs = teacher.all(
                lambda rows: unlabelled(self._gather(rows)[0]), len(data)
            )
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
        held = min(_MOST_HELD, len(data) // 10) if len(data) >= _FEW else 0
        self._held, self._train = (order[:held] if held else order), order[held:]
        self._shapes = _shapes(loaded, data) if loaded.info.ragged else None

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        if self._epochs is not None:
            return self._epochs.steps
        return len(self._chunks(self._train))

    def epoch(self, number: int) -> Iterator[DistillationBatch]:
        """The batches of epoch ``number``, from 1."""
        if self._epochs is not None:
            for batch in self._epochs.epoch(number):
                yield self._with_teacher(batch.input, batch.target, None)
            return
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + number)
        order = self._train[torch.randperm(len(self._train), generator=generator)]
        for rows in self._chunks(order):
            yield self._with_teacher(*self._gather(rows), rows)

    def held(self) -> Iterator[DistillationBatch]:
        """Batches of the held-back rows; of a stream its first rows, and of fewer than `_FEW` rows
        all of them, though they are trained on too.
        """
        if self._epochs is not None:
            batch = self._epochs.first(_CHUNK)
            yield self._with_teacher(batch.input, batch.target, None)
            return
        for rows in self._chunks(self._held, _CHUNK):
            yield self._with_teacher(*self._gather(rows), rows)

    def _with_teacher(self, inputs: Any, target: Any, rows: Tensor | None) -> DistillationBatch:
        expected: Outputs | None = None
        if rows is not None and self._teacher_outputs is not None:
            expected = tuple(tensor[rows] for tensor in self._teacher_outputs)
        elif self._teacher is not None:
            expected = self._teacher.outputs(unlabelled(inputs))
        return DistillationBatch(inputs, target, expected, rows_of(target))

    def _chunks(self, order: Tensor, size: int | None = None) -> list[Tensor]:
        """Row numbers in batches, each of one shape where shapes differ between rows."""
        groups = [order]
        if self._shapes is not None:
            shapes = self._shapes[order]
            groups = [order[shapes == shape] for shape in torch.unique(shapes)]
        chunks = [c for group in groups for c in torch.split(group, size or self._size)]
        if self._shapes is not None:  # shapes mixed, deterministically
            chunks.sort(key=lambda chunk: int(chunk[0]) * 2_654_435_761 % 2**32)
        whole = [c for c in chunks if len(c) > 1 or self._size == 1]
        return whole if self._paired and whole and size is None else chunks


def unlabelled(inputs: Any) -> Any:
    """Inputs without the labels that transformers' dicts hold."""
    if isinstance(inputs, dict):
        return {name: value for name, value in inputs.items() if name != LABELS}
    return inputs


def gatherer(loaded: LoadedTask, data: Any) -> tuple[batch_indexing.Gather, bool]:
    """A function from row numbers to a batch, and whether rows are constant between epochs."""
    slow = batch_indexing.reader(data, loaded.collate)
    if loaded.has_own_collate or loaded.info.ragged:
        return slow, False
    fast, _ = batch_indexing.gatherer(data, loaded.collate)
    few = torch.arange(min(_LOOKED_AT, len(data)))
    one, two = fast(few), fast(few)
    if not batch_indexing.same(one, two):
        return slow, False
    large = batch_tree.size_of(one) / len(few) * len(data) > KEPT_BYTES
    if large or batch_indexing.tensors_under(data) is not None:
        return fast, True
    pieces = [slow(chunk) for chunk in torch.split(torch.arange(len(data)), _CHUNK)]
    stacked = batch_tree.join(pieces)
    return (lambda rows: _indexed(stacked, rows)), True


def _indexed(stacked: Any, rows: Tensor) -> tuple[Any, Any]:
    found: tuple[Any, Any] = batch_tree.take(stacked, rows.numpy().astype(np.int64))
    return found


def _shapes(loaded: LoadedTask, data: Any) -> Tensor | None:
    """One id per row, equal for rows of one shape; None where the user's collate takes any."""
    if loaded.has_own_collate:
        return None
    seen: dict[str, int] = {}
    texts = (samples.describe(data[row][0]) for row in range(len(data)))
    return torch.tensor([seen.setdefault(text, len(seen)) for text in texts])


def _read(path: Path, rows: int) -> Outputs | None:
    from safetensors.torch import load_file

    found = load_file(str(path))
    answer = tuple(found[str(i)] for i in range(len(found)))
    return answer if all(len(tensor) == rows for tensor in answer) else None


def _write(path: Path, answer: Outputs) -> None:
    from safetensors.torch import save_file

    scratch = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({str(i): tensor.contiguous() for i, tensor in enumerate(answer)}, str(scratch))
    scratch.replace(path)
