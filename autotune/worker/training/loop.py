"""The steps of one training: a fresh model, its optimizer and its batches, stepped and timed.

    to(epochs) -> epoch by epoch -> _step: forward, loss, backward (in microbatches), clip the
                                           gradient's norm, optimizer, moving average
    state() / restore()   everything that the next step depends on, but random numbers

Where a training is (`done`) is counted in epochs, the one in progress as a share of its steps.
The user's own loader or stream can be left only between two epochs.  Not known here: validation,
and why training stops.
"""

import contextlib
import copy
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from autotune.errors import JobError
from autotune.parallel import Group
from autotune.records.plan import Recipe
from autotune.worker.contract import LoadedTask
from autotune.worker.data.batches import Batch, RankShare, batches_of, microbatches
from autotune.worker.training import (
    activation_checkpoint,
    amp,
    compile,
    lr_schedule,
    optimizers,
)
from autotune.worker.training.divergence import DivergenceCheck, ThroughputCheck
from autotune.worker.training.ema import MovingAverage
from autotune.worker.training.evaluation import lay_out, seed_all

_DRY_ROWS = 4  # of a forward and backward pass that trains nothing
NO_STEP = 1e-9  # of an epoch or a step: sums of fractions are not exact
_LONGEST_UNCHECKED_S = 0.25  # between two readings of the clock, a collective each


class Loop:
    """A training in progress.

    Args:
        epochs: the horizon of the learning rate's schedule, however soon training is stopped.
        limit_s: training time allowed; with ``strict`` from the first step on, otherwise
            from the second.
        strict: raise on a loss that is not finite.
        watch: raise on a loss that diverges, too.
        least_rate: raise where samples per second, over the first half second, are fewer.
    """

    def __init__(
        self,
        recipe: Recipe,
        loaded: LoadedTask,
        group: Group,
        *,
        seed: int,
        epochs: float = 1,
        limit_s: float | None = None,
        strict: bool = True,
        watch: bool = False,
        least_rate: float | None = None,
    ) -> None:
        self.loaded, self.group = loaded, group
        self._recipe, self._limit_s, self._strict = recipe, limit_s, strict
        self._seed = seed
        seed_all(seed)
        self.model: nn.Module = loaded.make_model().to(group.device)
        if recipe.channels_last:
            lay_out(self.model, torch.channels_last)
        self.model.train()
        share = _share(recipe, group, batch_norm=_has_batch_norm(self.model))
        self._batches = batches_of(loaded, loaded.training_data(), share, seed)
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        if not trainable:
            raise JobError("unsupported", "the model has no parameter that requires a gradient")
        self._trainable = trainable
        self._optimizer = optimizers.build(recipe, self.model)
        self._scaler = amp.scaler(recipe.precision, group.device)
        self._horizon = max(1, math.ceil(epochs * self._batches.steps - NO_STEP))
        self._average: MovingAverage | None = None
        if recipe.ema is not None and group.rank == 0:  # which alone validates and saves
            self._average = MovingAverage(self.model, recipe.ema)
        self._wrapped, self._compiled = self._wrap(loaded.stepped(self.model))
        seed_all(seed + group.rank)  # ranks drop out different units of their different rows
        self._watch = DivergenceCheck() if watch else None
        self._pace = ThroughputCheck(least_rate, recipe, group) if least_rate is not None else None
        self._begin()

    def _wrap(self, stepped: nn.Module) -> tuple[nn.Module, nn.Module | None]:
        """What computes a batch, and the same compiled where the recipe says so."""
        recipe, group = self._recipe, self.group
        unused = self._leaves_some_unused()
        if recipe.recompute:
            activation_checkpoint.recomputing(self.model, self._dry(stepped))
        wrapped = group.wrap(stepped, find_unused=unused)
        if not recipe.compile:
            return wrapped, None
        return wrapped, compile.compiled(stepped, group.world, recipe, self.loaded.info)

    def _dry(self, module: nn.Module) -> Callable[[], Tensor]:
        """The loss of the first few rows, the same at each call."""
        batch = self._batches.first(_DRY_ROWS)

        def loss() -> Tensor:
            seed_all(self._seed)
            return self.loaded.training_loss(module, batch.input, batch.target)

        return loss

    def _module_for(self, piece: Batch) -> nn.Module:
        """What computes a microbatch: the compiled module for the usual shape alone."""
        rows = min(self._recipe.batch_size, self._batches.rows)
        whole = piece.rows == math.ceil(rows / self._recipe.accumulate)
        return self._compiled if self._compiled is not None and whole else self._wrapped

    def _begin(self) -> None:
        """Nothing is trained yet."""
        self.steps = 0
        self.whole = 0  # complete epochs
        self._at = 0  # steps of the epoch in progress
        self.late = False
        self.train_s = self.startup_s = self.resumed_s = 0.0
        self.resumed_epochs = 0.0
        self.waited_s = 0.0
        self.wanted_step_losses = 0
        self.step_losses: list[float] = []
        self.epoch_losses: list[float] = []
        self._partial: list[
            tuple[float, float]
        ] = []  # mean loss and rows, for each visit to the epoch
        self._samples = self._first_samples = 0
        self._earlier_rate = 0.0
        self._first_s = 0.0
        self._next_check = self._own_steps = 0

    @property
    def done(self) -> float:
        """Epochs trained so far."""
        return self.whole + self._at / self._batches.steps if self._at else float(self.whole)

    @property
    def loadable(self) -> bool:
        """Whether worker processes could load the batches."""
        return self._batches.loadable

    @property
    def samples(self) -> int:
        """Samples that this process has trained on."""
        return self._samples

    @property
    def first_s(self) -> float:
        """Seconds of this process's first step."""
        return self._first_s

    @property
    def samples_per_s(self) -> float:
        """Over all steps but this process's first, or over that if there is no other."""
        spent = self.train_s - self.resumed_s
        if self._own_steps > 1:
            return (self._samples - self._first_samples) / (spent - self._first_s)
        return self._samples / spent if self._own_steps else self._earlier_rate

    def to(self, epochs: float) -> None:
        """Train until ``epochs`` are done, or the time limit cuts it short (``late``).

        Raises:
            JobError: a loss is not finite, or no batch can be made of the data.
        """
        if not self._own_steps:
            self.startup_s = time.monotonic() - self.group.started_s
        while self.done < epochs - NO_STEP and not self.late:
            left = epochs - self.whole
            steps = self._batches.steps
            inside = left < 1 and self._batches.divisible
            self._epoch(math.ceil(left * steps - NO_STEP) if inside else None)

    def _epoch(self, until: int | None) -> None:
        """Go on in the present epoch, to its step ``until`` or its end."""
        total = count = rows = 0.0
        began, before, earlier_s = time.perf_counter(), self.steps, self.train_s
        over = True
        asked = began
        for batch in self._batches.epoch(self.whole + 1, self._at):
            self.waited_s += time.perf_counter() - asked
            if self.late or (until is not None and self._at >= until):
                over = False
                break
            value = self._step(batch)
            self._at += 1
            total += value * batch.rows
            count += batch.rows
            rows += batch.of
            asked = time.perf_counter()
            self.train_s = earlier_s + asked - began
            self.late = self._time_is_up(batch)
            if self._pace is not None:
                spent_s = self.train_s - self.resumed_s - self._first_s
                self._pace.see(self._own_steps, spent_s, self.samples_per_s)
        if over and self.steps == before and not self._at:
            raise JobError(
                "unsupported",
                f"{self._batches.rows} training rows over {self.group.world} ranks make no "
                "batch of two rows a rank, which batch norm needs",
            )
        if count:
            self._partial.append((self.group.mean(total, count), rows))
        if over:
            of = sum(rows for _, rows in self._partial)
            self.epoch_losses.append(sum(mean * rows for mean, rows in self._partial) / of)
            self._partial, self._at = [], 0
            self.whole += 1

    def one_step(self) -> None:
        """One more step, on the epoch's first batch; it is not timed."""
        for batch in self._batches.epoch(self.whole + 1):
            self._step(batch)
            break

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Within, the model is what would be kept now: the averaged weights, where there are."""
        return contextlib.nullcontext() if self._average is None else self._average.applied()

    def finish(self) -> None:
        """The model is what is kept: the averaged weights, where there are; it is not trained
        any more.
        """
        if self._average is not None:
            self._average.swap()

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on as if nothing had happened."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state(),
            "scaler": self._scaler.state_dict(),
            "average": self._average.state() if self._average else None,
            "counts": {
                "steps": self.steps,
                "whole": self.whole,
                "at": self._at,
                "train_s": self.train_s,
                "rate": self.samples_per_s,
                "epoch_losses": list(self.epoch_losses),
                "step_losses": list(self.step_losses),
                "partial": [list(pair) for pair in self._partial],
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.model.load_state_dict(state["model"])
        self._optimizer.restore(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.restore(state["average"])
        counts = state["counts"]
        self.steps, self.whole, self._at = counts["steps"], counts["whole"], counts["at"]
        self.train_s = self.resumed_s = counts["train_s"]
        self._earlier_rate = counts["rate"]
        self.epoch_losses = list(counts["epoch_losses"])
        self.step_losses = list(counts["step_losses"])
        self._partial = [(mean, rows) for mean, rows in counts["partial"]]
        self.resumed_epochs = self.done
        self._next_check = self.steps
        self._batches.skip(self.whole)

    def _step(self, batch: Batch) -> float:
        """One optimizer step; returns this rank's mean loss."""
        self._optimizer.zero_grad()
        value = 0.0
        pieces = microbatches(batch, self._recipe.accumulate)
        for number, piece in enumerate(pieces, start=1):
            last = number == len(pieces)
            with contextlib.nullcontext() if last else self._unsynchronised():
                value += self._backward(piece, batch, piece.rows / max(1, batch.rows))
        for optimizer in self._optimizer.optimizers:
            self._scaler.unscale_(optimizer)
        if self._recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._trainable, self._recipe.clip_norm)
        factor = lr_schedule.factor(self._recipe, self.steps, self._horizon)
        self._optimizer.step(factor, self._scaler.step)
        self._scaler.update()
        if self._average is not None:
            self._average.update()
        self.steps += 1
        self._own_steps += 1
        self._samples += batch.of
        if len(self.step_losses) < self.wanted_step_losses:
            self.step_losses.append(self.group.mean(value * batch.rows, batch.rows))
        if self._watch is not None:
            self._watch.see(value, self.steps, self._recipe)
        return value

    def _backward(self, piece: Batch, batch: Batch, weight: float) -> float:
        """The gradient of a microbatch; returns its share of the batch's mean loss."""
        with amp.context(self._recipe.precision, self.group.device):
            loss = self.loaded.training_loss(
                self._module_for(piece),
                piece.input,
                piece.target,
                self.steps,
                self._recipe.label_smoothing,
            )
        value = float(loss.detach())
        if self._strict and not math.isfinite(value):
            raise JobError(
                "nan",
                f"the training loss is {value} at step {self.steps + 1} "
                f"({self._recipe.optimizer}, lr {self._recipe.lr:g}, {self._recipe.precision})",
            )
        scale = weight if piece is not batch else 1.0
        if self.group.world > 1:
            scale *= batch.rows * self.group.world / batch.of
        loss = loss if scale == 1.0 else loss * scale
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return value if piece is batch else value * weight

    def _unsynchronised(self) -> contextlib.AbstractContextManager[Any]:
        """Under DDP gradients are averaged once a step, with its last microbatch."""
        found: contextlib.AbstractContextManager[Any] = getattr(
            self._wrapped, "no_sync", contextlib.nullcontext
        )()
        return found

    def _time_is_up(self, batch: Batch) -> bool:
        """Whether the time is up, as rank 0 sees it; asked only as often as it matters."""
        spent = self.train_s - self.resumed_s
        if self._own_steps == 1:
            self._first_s, self._first_samples = spent, batch.of
        if self._limit_s is None or self.steps < self._next_check:
            return False
        left = self._limit_s - self.train_s + (0.0 if self._strict else self._first_s)
        gap = 0.0
        if left > 0:
            step_s = (spent - self._first_s) / max(self._own_steps - 1, 1) or self._first_s
            gap = max(1.0, min(left / 2, _LONGEST_UNCHECKED_S) / step_s // 1)
        gap = self.group.share(gap)
        self._next_check = self.steps + int(gap)
        return gap == 0

    def _leaves_some_unused(self) -> bool:
        """Whether DDP must look for parameters that got no gradient: tried on a copy, once.

        Looking costs a collective a step.  A model that uses other parameters from batch to
        batch is not seen by this; torch then stops with a message that says so.
        """
        if self.group.world == 1:
            return False
        try:
            model = copy.deepcopy(self.model)
        except Exception:  # a module that cannot be copied
            return bool(self.group.share(1.0))
        batch = self._batches.first(_DRY_ROWS)
        loss = self.loaded.training_loss(self.loaded.stepped(model), batch.input, batch.target)
        loss.backward()  # type: ignore[no-untyped-call]
        unused = any(p.requires_grad and p.grad is None for p in model.parameters())
        return bool(self.group.share(float(unused)))


def _share(recipe: Recipe, group: Group, *, batch_norm: bool) -> RankShare:
    """The rank's share of each batch."""
    return RankShare(
        recipe.batch_size,
        group.rank,
        group.world,
        batch_norm=batch_norm,
        device=group.device,
        threads=recipe.threads,
        workers=recipe.workers,
    )


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
