"""Training: one loop for every number of ranks, measured as it runs.

    run(job) --launch--> fit, on each rank, with its group
                           to the next rung -> validate, report, go on or pause -> ...
                           weights, losses, time, memory, energy -> Trained

Training that is stopped at a rung is paused: its whole state is kept (`checkpoint`), and a later
job with the same checkpoint goes on from there.  What is shipped are the weights of the best
validation, so that overfitting does no harm.  Where the user brought a ``train()`` of their own,
that runs instead (`user_loop`).

The gradient of a global batch of n rows over W ranks is that of one process: DDP takes the mean
over ranks, so a rank with k rows scales its mean loss by k W / n.  Losses are means over the
batch, as the task contract says; others (contrastive ones, weighted means) depend on the number
of ranks, as they do under plain DDP, and so does batch norm, whose statistics are each rank's own.

Clocks: ``train_s`` is the sum of the epochs, without loading, start-up and validation.  The energy
window spans the loop with its validations, but neither start-up nor the last validation.
"""

import contextlib
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from autotune import plugins
from autotune.errors import JobError
from autotune.parallel import Group
from autotune.records.job import MeasuredThroughput, Throughput, Train, Trained
from autotune.worker.channel import Channel
from autotune.worker.contract import load
from autotune.worker.training import checkpoint, compile, user_loop
from autotune.worker.training.evaluation import EnergyMonitor, Validator, peak_memory_bytes, save
from autotune.worker.training.loop import NO_STEP, Loop


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


def throughput(job: Throughput, root: Path, channel: Channel) -> MeasuredThroughput:
    """Training samples per second of one layout, after a first step; quality does not matter."""
    answer = plugins.load("parallel", job.recipe.parallel).launch(job, root, channel, rate)
    assert isinstance(answer, MeasuredThroughput)
    return answer


def fit(job: Train, root: Path, channel: Channel, group: Group) -> Trained:
    """The body of `run`: what one rank does."""
    if job.epochs <= 0:
        raise JobError("unsupported", f"epochs is {job.epochs}; training needs more than 0")
    if group.rank == 0:
        checkpoint.drop(root, job.drop)
    loaded = load(job.task)
    if loaded.own_train is not None:
        return user_loop.fit(job, root, channel, group, loaded)
    if job.recipe.compile:
        compile.keep_under(root)
    loop = Loop(
        job.recipe,
        loaded,
        group,
        seed=job.seed,
        epochs=job.epochs,
        limit_s=job.time_limit_s,
        watch=job.watch,
        least_rate=job.least_samples_per_s,
    )
    loop.wanted_step_losses = job.step_losses
    keep_best = job.until_quality is None
    validator = Validator(loaded, loop.model, group, channel, keep_best=keep_best)
    checkpointer = checkpoint.Checkpointer(loop, job, root, group, validator)
    with contextlib.ExitStack() as stack:
        monitor = EnergyMonitor(job.meter if group.rank == 0 else None, stack)
        go = _train_to_rungs(job, loop, checkpointer, validator)
        energy = monitor.close()
    checkpointer.save()
    loop.finish()
    ended = loop.done >= job.epochs - NO_STEP
    if go and ended and job.epochs in job.rungs:
        validator.report(job.epochs, loop.epoch_losses)
    elif go and not validator.reached(job.until_quality) and not validator.overfits():
        validator.validate(loop.done, loop.epoch_losses)
    overfitted = not ended and validator.overfits()
    validator.load_best()
    return Trained(
        epochs=loop.done,
        steps=loop.steps,
        stopped=not ended,
        train_losses=tuple(loop.epoch_losses),
        val_losses=tuple(validator.losses),
        qualities=tuple(validator.qualities),
        step_losses=tuple(loop.step_losses),
        train_s=loop.train_s,
        startup_s=loop.startup_s,
        samples_per_s=loop.samples_per_s,
        weights_sha256=save(loop.model, root, job.weights_out) if group.rank == 0 else None,
        peak_memory_bytes=int(group.largest(peak_memory_bytes())),
        energy=energy,
        resumed_epochs=loop.resumed_epochs,
        checkpoint_bytes=checkpointer.size_bytes or None,
        reached=validator.reached(job.until_quality),
        overfitted=overfitted,
        kept_epochs=validator.best.epoch if validator.best else None,
        kept_quality=validator.best.quality if validator.best else None,
    )


def _train_to_rungs(
    job: Train, loop: Loop, checkpointer: checkpoint.Checkpointer, validator: Validator
) -> bool:
    """Train from rung to rung; False where it is to pause.  Where it overfits it ends early."""
    for rung in (*(r for r in job.rungs if r < job.epochs), job.epochs):
        if validator.overfits():
            break
        checkpointer.train(rung)
        if loop.late or rung == job.epochs:
            break
        with loop.averaged():
            go = validator.report(rung, loop.epoch_losses)
        if not go:
            return False
        if validator.reached(job.until_quality):
            break
    return True


def rate(job: Throughput, root: Path, channel: Channel, group: Group) -> MeasuredThroughput:
    """The body of `throughput`: epochs until the budget, counted from the second step, is used.

    A loss that is not finite does not matter here.
    """
    loaded = load(job.task)
    if loaded.own_train is not None:
        return user_loop.rate(job, group, loaded)
    if job.recipe.compile:
        compile.keep_under(root)
    loop = Loop(job.recipe, loaded, group, seed=job.seed, limit_s=job.budget_s, strict=False)
    with contextlib.ExitStack() as stack:
        monitor = EnergyMonitor(job.meter if group.rank == 0 else None, stack)
        loop.to(math.inf)
        energy = monitor.close()
    joules = energy.total_j if energy else None
    return MeasuredThroughput(
        samples_per_s=loop.samples_per_s,
        startup_s=loop.startup_s,
        peak_memory_bytes=int(group.largest(peak_memory_bytes())),
        first_s=loop.first_s,
        waiting=loop.waited_s / loop.train_s if loop.loadable else None,
        energy_j_per_sample=None if joules is None else joules / loop.samples,
        # deterministic mode is one of the compiler's guards: the step would be compiled anew
        unsteady=() if job.recipe.compile else nondeterministic(loop.one_step),
    )


_WARNING = re.compile(r"^(\S.*?) does not have a deterministic implementation")


def nondeterministic(step: Callable[[], object]) -> tuple[str, ...]:
    """The operators of a training step that may give other results with the same seed, as torch's
    deterministic mode, which only warns here, names them.

    Not known: kernels chosen by timing (``torch.backends.cudnn.benchmark``), and the order in
    which ranks add up.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            step()
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn)
    found = (_WARNING.match(str(warning.message)) for warning in caught)
    return tuple(dict.fromkeys(match[1] for match in found if match))
