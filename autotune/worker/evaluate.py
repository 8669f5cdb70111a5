"""Quality of a model, or of recorded outputs, on one part of the data.

Where the score is per sample it is streamed.  Where there is only a `quality` over the whole
set, outputs are kept, and `REPLICATES` bootstrap resamples stand in for its interval; their
row indices depend on the seed and the number of rows alone, so that the replicates of two
models on the same part are paired.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autotune.errors import ContractError, JobError
from autotune.records.measurement import Scores
from autotune.worker import defaults
from autotune.worker.contract import Loaded
from autotune.worker.defaults import Named
from autotune.worker.rows import Rows

REPLICATES = 200


def evaluate(model: nn.Module, loaded: Loaded, part: str, batch_size: int = 256) -> Scores:
    """Score a model on ``part`` in eval mode, without gradients, where the model is.

    The modes of all its modules are put back afterwards.

    Raises:
        ContractError: the user's loss, score or quality breaks the contract.
        JobError: ``nan``: the loss or the quality is not a finite number.
    """
    device = device_of(model)
    tally = Tally(loaded)
    with evaluating(model):
        for inputs, target in loaded.batches(part, batch_size):
            output = loaded.call(model, to(inputs, device))
            tally.add(output, to(target, device))
    return tally.scores(loaded.spec.seed, needs_loss=True)


def score_outputs(
    loaded: Loaded, part: str, rows: Rows, seed: int, batch_size: int = 256
) -> Scores:
    """Score outputs recorded elsewhere, one row per row of ``part``, in its order.

    Raises:
        ContractError: another number of rows, or the user's functions break the contract.
    """
    expected = len(loaded.part(part))  # type: ignore[arg-type]
    if len(rows) != expected:
        raise ContractError(f"{len(rows)} rows of outputs for the {expected} rows of {part}")
    tally = Tally(loaded)
    start = 0
    with torch.no_grad():
        for _, target in loaded.batches(part, 1 if rows.ragged else batch_size):
            size = _rows(target)
            tally.add(_output(rows, start, size), target)
            start += size
    return tally.scores(seed)


class Tally:
    """Collects batches of outputs and targets into `Scores`."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._per_sample: list[Tensor] = []
        self._kept: list[tuple[Any, Any]] = []
        self._losses: list[tuple[float, int]] | None = []
        self._classes: list[tuple[Tensor, Tensor]] = []
        self._rows = 0

    def add(self, output: Any, target: Any) -> None:
        """One batch."""
        rows = _rows(target)
        self._rows += rows
        if self._losses is not None:
            value = self._loss(output, target)
            self._losses = None if value is None else [*self._losses, (value, rows)]
        score = self._loaded.score(output, target)
        if score is None:
            self._kept.append((to(output, "cpu"), to(target, "cpu")))
        else:
            self._per_sample.append(score.detach().cpu())
        guess = defaults.predicted(output, target)
        if guess is not None:
            self._classes.append((guess.cpu(), target.cpu()))

    def scores(self, seed: int, *, needs_loss: bool = False) -> Scores:
        """What was collected.

        Args:
            seed: of the resamples.
            needs_loss: a loss that is not finite is a failure; else it is left out.

        Raises:
            JobError: ``nan``: the quality (or the loss) is not a finite number.
        """
        shared: dict[str, Any] = {
            "rows": self._rows,
            "loss": self._mean_loss(needs_loss),
            "worst_class_recall": self._worst_recall(),
        }
        if self._per_sample:
            values = torch.cat(self._per_sample).double()
            quality = float(values.mean())
            self._finite(quality)
            return Scores(quality=quality, per_sample=tuple(values.tolist()), **shared)
        output = _join([kept[0] for kept in self._kept])
        target = _join([kept[1] for kept in self._kept])
        quality = self._loaded.quality(output, target)
        self._finite(quality)
        replicates = []
        for rows in resamples(self._rows, seed):
            value = self._loaded.quality(take(output, rows), take(target, rows))
            replicates.append(value if math.isfinite(value) else quality)
        return Scores(quality=quality, replicates=tuple(replicates), **shared)

    def _loss(self, output: Any, target: Any) -> float | None:
        """The batch's loss; None where only a default exists and it does not fit."""
        try:
            value = float(self._loaded.loss(output, target))
        except ContractError:
            if self._loaded.has_own_loss:
                raise
            return None
        return value

    def _mean_loss(self, needed: bool) -> float | None:
        if not self._losses:
            return None
        total = sum(value * rows for value, rows in self._losses)
        mean = total / max(self._rows, 1)
        if needed and not math.isfinite(mean):
            raise JobError("nan", f"the loss over {self._rows} rows is {mean}")
        return mean if math.isfinite(mean) else None

    def _worst_recall(self) -> float | None:
        if not self._classes or sum(len(t) for _, t in self._classes) != self._rows:
            return None
        guess = torch.cat([pair[0] for pair in self._classes])
        target = torch.cat([pair[1] for pair in self._classes])
        classes = sorted(set(target.tolist()))
        recalls = [(guess[target == c] == c).double().mean() for c in classes]
        return float(min(recalls)) if recalls else None

    def _finite(self, quality: float) -> None:
        if not math.isfinite(quality):
            name = self._loaded.info.metric
            raise JobError("nan", f"{name} over {self._rows} rows is {quality}")


def resamples(rows: int, seed: int) -> NDArray[np.int64]:
    """Row numbers of `REPLICATES` bootstrap resamples, ``[REPLICATES, rows]``."""
    return np.random.default_rng((seed, rows)).integers(0, rows, (REPLICATES, rows))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients; afterwards each module's own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer is, else the CPU."""
    tensors: Iterator[Tensor] = chain(model.parameters(), model.buffers())
    first = next(tensors, None)
    return torch.device("cpu") if first is None else first.device


def to(value: Any, device: torch.device | str) -> Any:
    """A batch on a device, whatever its form; tensors lose their graph only by ``no_grad``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return Named({name: to(item, device) for name, item in value.items()})
    if isinstance(value, tuple | list):
        return _like(value, [to(item, device) for item in value])
    return value


def take(value: Any, rows: NDArray[np.int64]) -> Any:
    """Some rows of a joined batch."""
    if isinstance(value, Tensor):
        return value[torch.from_numpy(rows)]
    if isinstance(value, Mapping):
        return Named({name: take(item, rows) for name, item in value.items()})
    if isinstance(value, tuple):
        return _like(value, [take(item, rows) for item in value])
    return value


def _like(value: Any, items: list[Any]) -> Any:
    """A tuple, or the user's own named tuple."""
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def _join(pieces: list[Any]) -> Any:
    first = pieces[0]
    if isinstance(first, Tensor):
        return torch.cat(pieces) if first.dim() else torch.stack(pieces)
    if isinstance(first, Mapping):
        return Named({name: _join([piece[name] for piece in pieces]) for name in first})
    if isinstance(first, tuple):
        return _like(first, [_join(list(column)) for column in zip(*pieces, strict=True)])
    return first


def _output(rows: Rows, start: int, size: int) -> Any:
    """The batch of recorded outputs as the user's functions expect it."""
    arguments, named = rows.batch(np.arange(start, start + size))
    if rows.kind == "dict":
        return Named({name: torch.from_numpy(array) for name, array in named.items()})
    tensors = tuple(torch.from_numpy(array) for array in arguments)
    return tensors if rows.kind == "tuple" else tensors[0]


def _rows(target: Any) -> int:
    """The batch size of a batch of targets."""
    if isinstance(target, Mapping):
        return _rows(next(iter(target.values())))
    return _rows(target[0]) if isinstance(target, tuple | list) else len(target)
