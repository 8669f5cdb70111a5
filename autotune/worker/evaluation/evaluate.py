"""Quality of a model, or of recorded outputs, on one part of the data.

    outputs, in batches of at most BATCH_BYTES ─┬─ score    per sample, streamed
                                                ├─ metric() streamed (`streaming_metric`)
                                                └─ quality  kept, refused when too large

Where there is only a number over the whole set, its interval comes from bootstrap replicates; the
rows drawn depend on the seed and the number of rows alone, so that the replicates of two models on
the same part are paired.  Balanced accuracy is a mean too: a right row of class c counts
rows / (classes * rows of c), so that the mean over the rows is the mean of the recalls.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autotune.errors import ContractError, JobError
from autotune.records.job import Score, Scored
from autotune.records.measurement import Scores
from autotune.worker.channel import Channel
from autotune.worker.contract import LoadedTask, load
from autotune.worker.data import rows as row_files
from autotune.worker.data.batch_tree import AttrDict, join, size_of, to
from autotune.worker.data.streams import rows_of
from autotune.worker.evaluation.streaming_metric import Streamed, bootstrap
from autotune.worker.user_file.errors import contract_error

BATCH_BYTES = 64 << 20
"""Outputs of one batch; losses and scores make a few copies of them."""
KEPT_BYTES = 1 << 30
"""Outputs that are kept for a ``quality`` over the whole set."""


def evaluate(model: nn.Module, loaded: LoadedTask, part: str, batch_size: int = 256) -> Scores:
    """Score a model on ``part`` in eval mode, without gradients, where the model is.

    The train or eval mode of each module is restored afterwards.

    Raises:
        ContractError: the user's loss, score or quality breaks the contract.
        JobError: ``nan``: the loss or the quality is not a finite number.
    """
    device = device_of(model)
    tally = Tally(loaded, loaded.rows(part))
    with evaluating(model):
        inputs, _ = loaded.collate([loaded.sample(part, 0)])
        size = fitting(batch_size, size_of(loaded.call(model, to(inputs, device))))
        for inputs, target in loaded.batches(part, size):
            output = loaded.call(model, to(inputs, device))
            tally.add(output, to(target, device))
    return tally.scores(loaded.spec.seed, needs_loss=True)


def fitting(batch_size: int, row_bytes: int) -> int:
    """The batch size, or the largest whose outputs fit into `BATCH_BYTES`."""
    return max(1, min(batch_size, BATCH_BYTES // max(1, row_bytes)))


def score_outputs(
    loaded: LoadedTask,
    part: str,
    outputs: row_files.Rows,
    seed: int,
    batch_size: int = 256,
    *,
    every: int = 1,
) -> Scores:
    """Score recorded outputs, one row per row of ``part`` (or every ``every``-th), in its order.

    Raises:
        ContractError: another number of rows, or the user's functions break the contract.
    """
    expected = len(range(0, loaded.rows(part), every))
    if len(outputs) != expected:
        raise ContractError(f"{len(outputs)} rows of outputs for the {expected} rows of {part}")
    tally = Tally(loaded, expected)
    start = 0
    batch = 1 if outputs.ragged else fitting(batch_size, outputs.row_bytes)
    with torch.no_grad():
        for _, target in loaded.batches(part, batch, every):
            size = rows_of(target)
            tally.add(_output(outputs, start, size), target)
            start += size
    return tally.scores(seed)


class Tally:
    """Collects batches of outputs and targets of a part of ``rows`` rows into `Scores`."""

    def __init__(self, loaded: LoadedTask, rows: int) -> None:
        self._functions = loaded.functions
        self._name = loaded.info.metric
        self._per_sample: list[Tensor] = []
        self._kept: list[tuple[Any, Any]] = []
        self._kept_bytes = 0
        self._losses: list[tuple[float, int]] | None = []
        self._classes: list[tuple[Tensor, Tensor]] = []
        self._rows = 0
        functions = loaded.functions
        streamed = functions.own_metric and not (functions.own_score or functions.own_quality)
        self._streamed = Streamed(functions, rows, loaded.spec.seed) if streamed else None

    def add(self, output: Any, target: Any) -> None:
        """One batch."""
        rows = rows_of(target)
        self._rows += rows
        if self._losses is not None:
            value = self._loss(output, target)
            self._losses = None if value is None else [*self._losses, (value, rows)]
        score = self._functions.score(output, target)
        if score is not None:
            self._per_sample.append(score.detach().cpu())
        elif self._streamed is not None:
            self._streamed.add(to(output, "cpu"), to(target, "cpu"), rows)
        else:
            self._keep(to(output, "cpu"), to(target, "cpu"))
        found = self._functions.classes(output, target)
        if found is not None:
            self._classes.append((found[0].cpu(), found[1].cpu()))

    def _keep(self, output: Any, target: Any) -> None:
        self._kept.append((output, target))
        self._kept_bytes += size_of(output)
        if self._kept_bytes > KEPT_BYTES:
            raise contract_error(
                self._functions.where,
                f"{self._name}(output, target) needs all outputs at once, and they are too large",
                found=f"{self._kept_bytes / 2**30:.1f} GB after {self._rows} rows",
                missing="score(output, target), or metric() with update and compute",
                fix="class Metric:\n"
                "    total = rows = 0\n"
                "    def update(self, output, target):\n"
                "        ...  # add up what compute() needs, and keep no outputs\n"
                "    def compute(self):\n"
                "        return self.total / self.rows\n"
                "metric = Metric",
            )

    def scores(self, seed: int, *, needs_loss: bool = False) -> Scores:
        """The scores of all batches.

        Args:
            seed: of the resamples.
            needs_loss: a loss that is not finite is a failure; else it is left out.

        Raises:
            JobError: ``nan``: the quality (or the loss) is not a finite number.
        """
        shared: dict[str, Any] = {
            "rows": self._rows,
            "loss": self._mean_loss(needs_loss),
            **self._recalls(),
        }
        if self._per_sample:
            values = self._weighted(torch.cat(self._per_sample).double())
            quality = float(values.mean())
            self._finite(quality)
            return Scores(quality=quality, per_sample=tuple(values.tolist()), **shared)
        if self._streamed is not None:
            quality, replicates = self._streamed.result()
            self._finite(quality)
            return Scores(quality=quality, replicates=replicates, **shared)
        output, target = (join(list(pieces)) for pieces in zip(*self._kept, strict=True))
        quality = self._functions.quality(output, target)
        self._finite(quality)
        replicates = bootstrap(self._functions, output, target, quality, self._rows, seed)
        return Scores(quality=quality, replicates=replicates, **shared)

    def _weighted(self, right: Tensor) -> Tensor:
        """Scores weighted so that their mean is the balanced accuracy, where that is the metric."""
        if not self._functions.balanced or not self._classes:
            return right
        target = torch.cat([pair[1] for pair in self._classes])
        if len(target) != len(right):
            return right
        _, classes, counts = torch.unique(target, return_inverse=True, return_counts=True)
        weights: Tensor = len(target) / (len(counts) * counts.double())
        return right * weights[classes]

    def _loss(self, output: Any, target: Any) -> float | None:
        """The batch's loss; None where only a default exists and it does not fit."""
        try:
            value = float(self._functions.loss(output, target))
        except (ContractError, IndexError):
            if self._functions.own_loss is not None:
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

    def _recalls(self) -> dict[str, float]:
        """The lowest recall of a class, and the mean of the recalls, where there are classes."""
        if not self._classes or sum(len(t) for _, t in self._classes) != self._rows:
            return {}
        guess = torch.cat([pair[0] for pair in self._classes])
        target = torch.cat([pair[1] for pair in self._classes])
        classes = sorted(set(target.tolist()))
        recalls = [float((guess[target == c] == c).double().mean()) for c in classes]
        if not recalls:
            return {}
        return {
            "worst_class_recall": min(recalls),
            "balanced_accuracy": sum(recalls) / len(recalls),
        }

    def _finite(self, quality: float) -> None:
        if not math.isfinite(quality):
            raise JobError("nan", f"{self._name} over {self._rows} rows is {quality}")


def run(job: Score, root: Path, channel: Channel) -> Scored:
    """Score ``job.outputs``, which an artifact gave in a process of its own, against the targets
    of ``job.part``; a large file of outputs is then removed.

    Raises:
        ContractError: the user's functions break the contract.
        JobError: ``nan`` where quality is not a finite number.
    """
    path = root / job.outputs
    loaded = load(job.task).read_inspected(root)
    scores = score_outputs(loaded, job.part, row_files.load(path), job.seed, every=job.every)
    if (
        path.stat().st_size > row_files.KEPT_BYTES
    ):  # gigabytes for each candidate would fill the disk
        path.unlink()
    return Scored(scores=scores)


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


def _output(outputs: row_files.Rows, start: int, size: int) -> Any:
    """The batch of recorded outputs as the user's functions expect it."""
    arguments, named = outputs.batch(range(start, start + size))
    if outputs.kind == "dict":
        return AttrDict({name: torch.from_numpy(array) for name, array in named.items()})
    tensors = tuple(torch.from_numpy(array) for array in arguments)
    return tensors if outputs.kind == "tuple" else tensors[0]
