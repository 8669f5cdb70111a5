"""The user's own training loop: ``train(model, recipe, data, trial) -> model``.

    train(...) ── trial.report(epoch, value) ── at rungs ── go on or stop
               ── trial.should_stop()         it is to stop, or the time is up
               ── trial.checkpoint(state)     on disk until the training has ended
               `─ model ── validated, saved and measured here

It uses the recipe's fields that ``tunes`` lists, and runs in one process.  The values that it
reports decide on stopping early alone; quality is measured on the model that it returns.
"""

import contextlib
import hashlib
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from autotune.errors import JobError
from autotune.parallel import Group
from autotune.records import codec
from autotune.records.job import MeasuredThroughput, Throughput, Train, Trained
from autotune.records.plan import Recipe
from autotune.worker.channel import Channel, NullChannel
from autotune.worker.contract import LoadedTask
from autotune.worker.data.samples import LABELS, Part
from autotune.worker.data.streams import Stream
from autotune.worker.training import evaluation
from autotune.worker.user_file.errors import contract_error, guard

CHECKPOINTS = "checkpoints"
_CALL = "train(model, recipe, data, trial)"


class Trial:
    """What the user's loop gets: fields to read and methods to call.

    Attributes:
        epochs: how many to train.
        seed: torch, NumPy and random are seeded with it already.
        device: where the model is.
        params: the user's own hyperparameters (``space(trial)``), those of ``make_model`` too.
    """

    def __init__(
        self, job: Train, channel: Channel, loaded: LoadedTask, device: str, checkpoint: Path
    ) -> None:
        self.epochs = job.epochs
        self.seed = job.seed
        self.device = device
        self.params = dict(loaded.params)
        self.values: list[float] = []
        self.qualities: list[float] = []
        self.last_step = 0
        self.stopped = False
        self.reached = False
        self._target = job.until_quality
        self._rungs = list(job.rungs)
        self._channel = channel
        self._sign = -1.0 if loaded.higher_is_better else 1.0
        self._until = math.inf
        if job.time_limit_s is not None:
            self._until = time.monotonic() + job.time_limit_s
        self._path = checkpoint
        self.waited_s = 0.0

    def report(self, step: int, value: float) -> bool:
        """Report how good the model is after epoch ``step`` (from 1), by your metric on data that
        is not trained on; returns whether to go on.

        Raises:
            JobError: ``nan``: the value is not a finite number.
        """
        value = float(value)
        if not math.isfinite(value):
            raise JobError("nan", f"train() reported {value} at step {step}")
        self.last_step = int(step)
        began = time.monotonic()
        while self._rungs and self._rungs[0] <= step:
            rung = self._rungs.pop(0)
            self.values.append(self._sign * value)
            self.qualities.append(value)
            if not self._channel.report(rung, self.values[-1]):
                self.stopped = True
        self.waited_s += time.monotonic() - began
        if self._target is not None and self._sign * value <= self._sign * self._target:
            self.stopped = self.reached = True
        return not self.should_stop()

    def should_stop(self) -> bool:
        """Whether to return the model as it is now: other trials were better, or the time is up."""
        self.stopped = self.stopped or time.monotonic() > self._until
        return self.stopped

    def checkpoint(self, state: dict[str, Any]) -> None:
        """Keep tensors and plain values, in case this process is interrupted."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self._path.with_name(self._path.name + ".part")
        torch.save(state, scratch)
        scratch.replace(self._path)

    def restore(self) -> dict[str, Any] | None:
        """The last `checkpoint` of this very training if it was interrupted, else None."""
        if not self._path.is_file():
            return None
        state: dict[str, Any] = torch.load(self._path, weights_only=True)
        return state


class Data(Dataset[Any]):
    """The user's own samples of *train*, as their dataset yields them, counted as they are read.

    ``until``: when to stop, as of time.monotonic(), where only throughput is measured.
    """

    def __init__(self, part: Part, until: float = math.inf) -> None:
        self._part = part
        self._until = until
        self._owner = os.getpid()
        self.read = 0

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, index: int) -> Any:
        self.read += 1
        if time.monotonic() > self._until and os.getpid() == self._owner:
            raise _EnoughError
        rows = self._part.rows
        return self._part.base[int(index) if rows is None else int(rows[index])]


class StreamData(IterableDataset[Any]):
    """The same for data that can only be iterated; one pass is an epoch."""

    def __init__(self, stream: Stream, until: float = math.inf) -> None:
        self._stream = stream
        self._until = until
        self.read = 0

    def __len__(self) -> int:
        return len(self._stream)

    def __iter__(self) -> Iterator[Any]:
        samples = self._stream.samples()
        for _ in range(len(self._stream)):
            self.read += 1
            if time.monotonic() > self._until:
                raise _EnoughError
            inputs, target = next(samples)
            labelled = isinstance(inputs, dict) and LABELS in inputs
            yield inputs if labelled else (inputs, target)


class _EnoughError(BaseException):
    """Ends a loop that is only timed; ``except Exception`` in the user's code does not catch it."""


def fit(job: Train, root: Path, channel: Channel, group: Group, loaded: LoadedTask) -> Trained:
    """Run the user's loop once and measure it, as `train.fit` does ours."""
    _require_one_process(group)
    model, data = _begin(job.seed, group, loaded)
    path = root / CHECKPOINTS / f"{_key(job)}.pt"
    trial = Trial(job, channel, loaded, group.device, path)
    startup_s = time.monotonic() - group.started_s
    with contextlib.ExitStack() as stack:
        monitor = evaluation.EnergyMonitor(job.meter, stack)
        began = time.perf_counter()
        model = _run(loaded, model, job.recipe, data, trial)
        train_s = max(time.perf_counter() - began - trial.waited_s, 1e-9)
        energy = monitor.close()
    paused = trial.stopped and job.checkpoint and trial.last_step < max(job.rungs, default=0)
    if not paused:  # else `restore` finds it when the training goes on
        path.unlink(missing_ok=True)
    validator = evaluation.Validator(loaded, model, group, channel)
    if not trial.reached:
        validator.validate()
    done = trial.last_step or job.epochs
    samples = data.read or done * len(data)
    return Trained(
        epochs=done,
        steps=math.ceil(samples / job.recipe.batch_size),
        stopped=trial.stopped,
        train_losses=(),
        val_losses=(*trial.values, *validator.losses),
        qualities=(*trial.qualities, *validator.qualities),
        train_s=train_s,
        startup_s=startup_s,
        samples_per_s=samples / train_s,
        peak_memory_bytes=int(group.largest(evaluation.peak_memory_bytes())),
        weights_sha256=evaluation.save(model, root, job.weights_out),
        energy=energy,
        reached=trial.reached,
    )


def rate(job: Throughput, group: Group, loaded: LoadedTask) -> MeasuredThroughput:
    """Rows per second that the user's loop reads, in one epoch or as much as the time allows."""
    _require_one_process(group)
    until = time.monotonic() + job.budget_s
    model, data = _begin(job.seed, group, loaded, until)
    epoch = Train(task=job.task, recipe=job.recipe, epochs=1, seed=job.seed)
    trial = Trial(epoch, NullChannel(), loaded, group.device, Path(os.devnull))
    trial.checkpoint = lambda state: None  # type: ignore[method-assign]
    startup_s = time.monotonic() - group.started_s
    began = time.perf_counter()
    with contextlib.suppress(_EnoughError):
        _run(loaded, model, job.recipe, data, trial)
    spent = max(time.perf_counter() - began, 1e-9)
    return MeasuredThroughput(
        samples_per_s=(data.read or len(data)) / spent,
        startup_s=startup_s,
        peak_memory_bytes=int(group.largest(evaluation.peak_memory_bytes())),
    )


def _require_one_process(group: Group) -> None:
    if group.world > 1:
        raise JobError(
            "unsupported",
            f"train() is your own loop and runs in one process; {group.world} ranks are asked for",
        )


def _begin(
    seed: int, group: Group, loaded: LoadedTask, until: float = math.inf
) -> tuple[nn.Module, Data | StreamData]:
    evaluation.seed_all(seed)
    model = loaded.make_model().to(group.device)
    model.train()
    part = loaded.training_data()
    data = StreamData(part, until) if isinstance(part, Stream) else Data(part, until)
    return model, data


def _run(
    loaded: LoadedTask, model: nn.Module, recipe: Recipe, data: Any, trial: Trial
) -> nn.Module:
    assert loaded.own_train is not None
    with guard(loaded.where, _CALL, loaded.path):
        made = loaded.own_train(model, recipe, data, trial)
    made = model if made is None else made
    if not isinstance(made, nn.Module):
        raise contract_error(
            loaded.where,
            f"{_CALL} must return the trained model",
            found=f"a {type(made).__name__}",
            fix="def train(model, recipe, data, trial):\n    ...\n    return model",
        )
    if not all(bool(p.isfinite().all()) for p in made.parameters()):
        raise JobError("nan", "the model that train() returned has weights that are not finite")
    return made


def _key(job: Train) -> str:
    """Names one training: recipe, task, seed and length."""
    same = Train(task=job.task, recipe=job.recipe, epochs=job.epochs, seed=job.seed)
    return hashlib.sha256(codec.encode(same)).hexdigest()[:16]
