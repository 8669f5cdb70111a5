"""What recovery learns from: the rows, and what the dense model says to each.

    training rows ─┬─ held back   judge each epoch, never trained on
                   └─ the rest    shuffled by seed, batch after batch ─┐
    dense model ── its outputs, once a build where rows stay as they are ┴─ Lesson

Rows that come out the same when read twice are stacked once and then drawn by number, so that
neither the user's ``__getitem__`` nor the dense model runs again in each epoch.  Rows that
change (augmentation), a ``collate`` of the user's or a stream are read anew, and the dense
model answers along the way.  Not known: a dataset that changes later than in its first rows.
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
_LOOKED_AT = 16  # rows read twice: a coin of 1/2 a row hides in 1 of 65,000 cases
_MOST_HELD = 1024
_FEW = 100  # rows; with fewer nothing is held back
_CHUNK = 256

Answer = tuple[Tensor, ...]


class Lesson(NamedTuple):
    """One batch and the dense model's outputs for it (None where there is no such model)."""

    input: Any
    target: Any
    answer: Answer | None
    rows: int


class Teacher:
    """The dense model's outputs.

    Args:
        model: it, in eval mode.
        path: a safetensors file to keep them in, for the next level of the same model.
        call: runs a model on a batch.
    """

    def __init__(
        self, model: Callable[[], nn.Module], path: Path | None, call: Callable[..., Any]
    ) -> None:
        self._make, self._path, self._call = model, path, call

    @functools.cached_property
    def _model(self) -> nn.Module:
        return self._make().eval().requires_grad_(False)

    def answers(self, inputs: Any) -> Answer:
        """Its floating outputs for one batch."""
        with torch.no_grad():
            return outputs(self._call(self._model, inputs))

    def all(self, inputs: Callable[[Tensor], Any], rows: int) -> Answer | None:
        """Its outputs for rows 0 to ``rows``, from the file where they are; None where they are
        too many to keep.
        """
        if self._path is not None and self._path.is_file():
            return _read(self._path, rows)
        pieces: list[Answer] = []
        for chunk in torch.split(torch.arange(rows), _CHUNK):
            pieces.append(tuple(tensor.cpu() for tensor in self.answers(inputs(chunk))))
            if sum(map(batch_tree.size_of, pieces[0])) / len(chunk) * rows > KEPT_BYTES:
                return None
            if any(len(tensor) != len(chunk) for tensor in pieces[-1]):
                return None  # outputs that are not one a row
        found: Answer = tuple(torch.cat(column) for column in zip(*pieces, strict=True))
        if self._path is not None:
            _write(self._path, found)
        return found


def outputs(output: Any) -> Answer:
    """The floating tensors of an output that have a batch dimension."""
    return tuple(o for o in tensors(output) if o.is_floating_point() and o.dim())


class Lessons:
    """Batches of the training rows with the dense model's answers.

    Args:
        loaded: the task.
        data: its *train* or *calibration* part.
        size: rows of a batch.
        seed: of the order, and of what is held back.
        teacher: the dense model, or None.
        paired: the model has batch norm, which a batch of one row is no use to.
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
        self._answers: Answer | None = None
        if kept and teacher is not None:
            self._answers = teacher.all(lambda rows: unlabelled(self._gather(rows)[0]), len(data))
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

    def epoch(self, number: int) -> Iterator[Lesson]:
        """The batches of epoch ``number``, from 1."""
        if self._epochs is not None:
            for batch in self._epochs.epoch(number):
                yield self._lesson(batch.input, batch.target, None)
            return
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + number)
        order = self._train[torch.randperm(len(self._train), generator=generator)]
        for rows in self._chunks(order):
            yield self._lesson(*self._gather(rows), rows)

    def held(self) -> Iterator[Lesson]:
        """What is held back; of streams and tiny sets, which have no rows to spare, the first
        or all of those that are trained on.
        """
        if self._epochs is not None:
            batch = self._epochs.first(_CHUNK)
            yield self._lesson(batch.input, batch.target, None)
            return
        for rows in self._chunks(self._held, _CHUNK):
            yield self._lesson(*self._gather(rows), rows)

    def _lesson(self, inputs: Any, target: Any, rows: Tensor | None) -> Lesson:
        answer: Answer | None = None
        if rows is not None and self._answers is not None:
            answer = tuple(tensor[rows] for tensor in self._answers)
        elif self._teacher is not None:
            answer = self._teacher.answers(unlabelled(inputs))
        return Lesson(inputs, target, answer, rows_of(target))

    def _chunks(self, order: Tensor, size: int | None = None) -> list[Tensor]:
        """Batches of rows that can be stacked, each of one shape where shapes differ."""
        groups = [order]
        if self._shapes is not None:
            shapes = self._shapes[order]
            groups = [order[shapes == shape] for shape in torch.unique(shapes)]
        chunks = [c for group in groups for c in torch.split(group, size or self._size)]
        if self._shapes is not None:  # mixed again, in an order that the rows' own decides
            chunks.sort(key=lambda chunk: int(chunk[0]) * 2_654_435_761 % 2**32)
        whole = [c for c in chunks if len(c) > 1 or self._size == 1]
        return whole if self._paired and whole and size is None else chunks


def unlabelled(inputs: Any) -> Any:
    """Inputs without the labels that transformers' dicts hold."""
    if isinstance(inputs, dict):
        return {name: value for name, value in inputs.items() if name != LABELS}
    return inputs


def gatherer(loaded: LoadedTask, data: Any) -> tuple[batch_indexing.Gather, bool]:
    """From row numbers to a batch, and whether rows stay as they are from one reading to the
    next.
    """
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
    return (lambda rows: _taken(stacked, rows)), True


def _taken(stacked: Any, rows: Tensor) -> tuple[Any, Any]:
    found: tuple[Any, Any] = batch_tree.take(stacked, rows.numpy().astype(np.int64))
    return found


def _shapes(loaded: LoadedTask, data: Any) -> Tensor | None:
    """A number a row, the same for rows of one shape; None where collate takes any."""
    if loaded.has_own_collate:
        return None
    seen: dict[str, int] = {}
    texts = (samples.describe(data[row][0]) for row in range(len(data)))
    return torch.tensor([seen.setdefault(text, len(seen)) for text in texts])


def _read(path: Path, rows: int) -> Answer | None:
    from safetensors.torch import load_file

    found = load_file(str(path))
    answer = tuple(found[str(i)] for i in range(len(found)))
    return answer if all(len(tensor) == rows for tensor in answer) else None


def _write(path: Path, answer: Answer) -> None:
    from safetensors.torch import save_file

    scratch = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({str(i): tensor.contiguous() for i, tensor in enumerate(answer)}, str(scratch))
    scratch.replace(path)
