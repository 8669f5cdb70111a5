"""Training: one loop for every number of ranks, measured as it runs.

    run(job) --launch--> fit, on each rank, with its group
                           epoch -> rung? evaluate on select, report, go or stop -> epoch ...
                           weights, losses, time, memory, energy -> Trained

The gradient of a global batch of n rows over W ranks is that of one process: DDP takes the
mean over ranks, so a rank with k rows scales its mean loss by k W / n.  Losses are taken to
be means over the batch, as the task contract says.  Where the user brought a ``train()`` of
their own, that runs instead (`ownloop`).  Not known here: losses that are not
(contrastive ones, or weighted means) differ between splits as they do under plain DDP, and
so does batch norm, whose statistics are each rank's own.

Clocks: ``train_s`` is the sum of the epochs; loading, start-up and evaluation are
outside.  The energy window spans the loop with its rung evaluations, and
neither start-up nor the last evaluation.
"""

import contextlib
import copy
import itertools
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autotune import plugins
from autotune.errors import JobError
from autotune.parallel import Group
from autotune.records.job import Rate, Throughput, Train, Trained
from autotune.records.plan import Recipe
from autotune.worker import contract, optimizers, ownloop, schedules
from autotune.worker.averaging import Average
from autotune.worker.batches import Batch, Share, of_task
from autotune.worker.channel import Channel
from autotune.worker.contract import Loaded
from autotune.worker.trained import Judge, Meter, peak_memory_bytes, rows_of, save, seed_all

_DRY_ROWS = 4
_LONGEST_UNCHECKED_S = 0.25


def run(job: Train, root: Path, channel: Channel) -> Trained:
    """Train a fresh model by ``job.recipe`` and measure it.

    Raises:
        JobError: ``nan`` where a loss is not finite (with its step), ``unsupported`` where
            nothing can be trained, ``crash`` where a rank died.
        ContractError: the task has no training data.
    """
    answer = plugins.load("parallel", job.recipe.parallel).launch(job, root, channel, fit)
    assert isinstance(answer, Trained)
    return answer


def throughput(job: Throughput, root: Path, channel: Channel) -> Rate:
    """Training samples per second of one split, after a first step; no quality involved."""
    answer = plugins.load("parallel", job.recipe.parallel).launch(job, root, channel, rate)
    assert isinstance(answer, Rate)
    return answer


def fit(job: Train, root: Path, channel: Channel, group: Group) -> Trained:
    """The body of `run`: what one rank does."""
    if job.epochs < 1:
        raise JobError("unsupported", f"epochs is {job.epochs}; training needs at least 1")
    loaded = contract.load(job.task)
    if loaded.own_train is not None:
        return ownloop.fit(job, root, channel, group, loaded)
    loop = Loop(
        job.recipe, loaded, group, seed=job.seed, epochs=job.epochs, limit_s=job.time_limit_s
    )
    loop.wanted_step_losses = job.step_losses
    judge = Judge(loaded, loop.model, group, channel)
    done, go, rung = 0, True, False
    with contextlib.ExitStack() as stack:
        meter = Meter(job.meter if group.rank == 0 else None, stack)
        while go and done < job.epochs and not loop.late:
            whole = loop.epoch(done + 1)
            done += whole
            rung = whole and done in job.rungs
            if rung and done < job.epochs and not loop.late:
                with loop.judged():
                    go = judge.report(done)
        energy = meter.close()
    loop.settle()
    if go and rung:
        judge.report(done)
    elif go:
        judge.look()
    return Trained(
        epochs=done,
        steps=loop.steps,
        stopped=done < job.epochs,
        train_losses=tuple(loop.epoch_losses),
        val_losses=tuple(judge.losses),
        qualities=tuple(judge.qualities),
        step_losses=tuple(loop.step_losses),
        train_s=loop.train_s,
        startup_s=loop.startup_s,
        samples_per_s=loop.samples_per_s,
        weights_sha256=save(loop.model, root, job.weights_out) if group.rank == 0 else None,
        peak_memory_bytes=int(group.largest(peak_memory_bytes())),
        energy=energy,
    )


def rate(job: Throughput, root: Path, channel: Channel, group: Group) -> Rate:
    """The body of `throughput`: epochs until the budget, counted from the second step, is used.

    A loss that is not finite does not matter here.
    """
    loaded = contract.load(job.task)
    if loaded.own_train is not None:
        return ownloop.rate(job, group, loaded)
    loop = Loop(job.recipe, loaded, group, seed=job.seed, limit_s=job.budget_s, strict=False)
    for number in itertools.count(1):
        loop.epoch(number)
        if loop.late:
            break
    return Rate(
        samples_per_s=loop.samples_per_s,
        startup_s=loop.startup_s,
        peak_memory_bytes=int(group.largest(peak_memory_bytes())),
    )


class Loop:
    """A fresh model, its optimizer and its batches, stepped and timed.

    Args:
        epochs: the horizon of the learning rate's schedule, however soon training is stopped.
        limit_s: training time allowed; with ``strict`` from the first step on, otherwise
            from the second.
        strict: raise on a loss that is not finite.
    """

    def __init__(
        self,
        recipe: Recipe,
        loaded: Loaded,
        group: Group,
        *,
        seed: int,
        epochs: int = 1,
        limit_s: float | None = None,
        strict: bool = True,
    ) -> None:
        self.loaded, self.group = loaded, group
        self._recipe, self._limit_s, self._strict = recipe, limit_s, strict
        seed_all(seed)
        self.model: nn.Module = loaded.make_model().to(group.device)
        self.model.train()
        share = Share(
            recipe.batch_size,
            group.rank,
            group.world,
            paired=_has_batch_norm(self.model),
            device=group.device,
            threads=recipe.threads,
        )
        self._batches = of_task(loaded, rows_of(loaded), share, seed)
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        if not trainable:
            raise JobError("unsupported", "the model has no parameter that requires a gradient")
        self._trainable = trainable
        self._rule = optimizers.build(recipe, self.model)
        self._horizon = max(1, epochs * self._batches.steps)
        self._average: Average | None = None
        if recipe.ema is not None and group.rank == 0:  # which alone judges and saves
            self._average = Average(self.model, recipe.ema)
        stepped = loaded.stepped(self.model)
        self._wrapped = group.wrap(stepped, find_unused=self._leaves_some_unused())
        seed_all(seed + group.rank)  # ranks drop out different units of their different rows
        self.steps = 0
        self.late = False
        self.train_s = self.startup_s = 0.0
        self.wanted_step_losses = 0
        self.step_losses: list[float] = []
        self.epoch_losses: list[float] = []
        self._samples = self._first_samples = 0
        self._first_s = 0.0
        self._next_check = 1

    @property
    def samples_per_s(self) -> float:
        """Over all steps but the first, or over the first if there is no other."""
        if self.steps > 1:
            return (self._samples - self._first_samples) / (self.train_s - self._first_s)
        return self._samples / self.train_s

    def epoch(self, number: int) -> bool:
        """Train epoch ``number``; False when the time limit (``late``) cut it short.

        Raises:
            JobError: a loss is not finite, or no batch can be made of the data.
        """
        total = count = 0.0
        whole = True
        began = time.perf_counter()
        if not self.steps:
            self.startup_s = time.monotonic() - self.group.started_s
        before = self.steps
        earlier_s = self.train_s
        for batch in self._batches.epoch(number):
            if self.late:
                whole = False
                break
            value = self._step(batch)
            total += value * batch.rows
            count += batch.rows
            self.train_s = earlier_s + time.perf_counter() - began
            self.late = self._time_is_up(batch)
        if self.steps == before:
            raise JobError(
                "unsupported",
                f"{self._batches.rows} training rows over {self.group.world} ranks make no "
                "batch of two rows a rank, which batch norm needs",
            )
        self.epoch_losses.append(self.group.mean(total, count))
        return whole

    def judged(self) -> contextlib.AbstractContextManager[None]:
        """Within, the model is what would be kept now: the averaged weights, where there are."""
        return contextlib.nullcontext() if self._average is None else self._average.applied()

    def settle(self) -> None:
        """The model is what is kept; it is not trained any more."""
        if self._average is not None:
            self._average.settle()

    def _step(self, batch: Batch) -> float:
        """One optimizer step; returns this rank's mean loss."""
        self._rule.zero_grad()
        with self._precision():
            loss = self.loaded.training_loss(
                self._wrapped,
                batch.input,
                batch.target,
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
        if self.group.world > 1:
            loss = loss * (batch.rows * self.group.world / batch.of)
        loss.backward()  # type: ignore[no-untyped-call]
        if self._recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._trainable, self._recipe.clip_norm)
        self._rule.step(schedules.share(self._recipe, self.steps, self._horizon))
        if self._average is not None:
            self._average.update()
        self.steps += 1
        self._samples += batch.of
        if len(self.step_losses) < self.wanted_step_losses:
            self.step_losses.append(self.group.mean(value * batch.rows, batch.rows))
        return value

    def _time_is_up(self, batch: Batch) -> bool:
        """Whether the time is up, as rank 0 sees it; asked only as often as it matters."""
        if self.steps == 1:
            self._first_s, self._first_samples = self.train_s, batch.of
        if self._limit_s is None or self.steps < self._next_check:
            return False
        left = self._limit_s - self.train_s + (0.0 if self._strict else self._first_s)
        gap = 0.0
        if left > 0:
            step_s = (self.train_s - self._first_s) / max(self.steps - 1, 1) or self._first_s
            gap = max(1.0, min(left / 2, _LONGEST_UNCHECKED_S) / step_s // 1)
        gap = self.group.share(gap)
        self._next_check = self.steps + int(gap)
        return gap == 0

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self._recipe.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.group.device.partition(":")[0], dtype=torch.bfloat16)

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


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
