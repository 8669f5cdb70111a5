"""Recovery training: a compressed model is fine-tuned by distillation from the dense one and on
the labels.

    start ── epoch ── held-back loss ── epoch ── held-back loss ── ... ── the best is kept
             loss: `distillation_loss`, rows: `distillation_data`, lr: warm-up, then cosine to 0

Uses the recipe's optimizer, batch size and precision, not its schedule, gradient clipping, label
smoothing and weight averaging, which are for training from scratch.  Ends early once the held-back
loss falls by less than a fraction of its initial value, so light compression is cheap to recover.
A loss that is not finite restores the best state so far and continues at a tenth of the learning
rate.
"""

import contextlib
import copy
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from autotune.errors import JobError
from autotune.records.plan import Recipe, Recovery
from autotune.worker.channel import Channel
from autotune.worker.contract import LoadedTask
from autotune.worker.data.batch_tree import to
from autotune.worker.data.streams import Stream
from autotune.worker.training.evaluation import lay_out

if TYPE_CHECKING:
    from collections.abc import Callable

    from autotune.worker.build.distillation_data import DistillationBatch, DistillationData

_WARMUP = 0.1  # of all steps
_MIN_GAIN = 0.005  # of the initial held-back loss: a smaller decrease does not count
_PATIENCE = 2  # epochs without such a decrease
_RETRIES = 2
_FEWEST = 256  # rows of a partial epoch
_DEFAULT = Recovery()
_BF16_FLOPS = 2000.0  # FLOPs per batch and parameter from which bf16 is used (see `_use_bf16`)


def recover(
    model: nn.Module,
    loaded: LoadedTask,
    recipe: Recipe,
    epochs: float,
    seed: int,
    channel: Channel,
    teacher: "Callable[[], nn.Module] | None" = None,
    path: Path | None = None,
    settings: Recovery = _DEFAULT,
    device: str = "cpu",
) -> float:
    """Train ``model`` in place on the training rows, or the calibration rows where there are none.

    Args:
        model: the compressed model.
        loaded: the task.
        recipe: how the dense model was trained.
        epochs: the most epochs; under 1, one pass over that share of the rows.
        seed: of the row order and of dropout.
        channel: receives each epoch's held-back loss.
        teacher: makes the dense model; without it only the task's loss is used.
        path: file that caches the teacher's outputs between builds.
        settings: what ``--joint`` searches.  The default is the recipe's own learning rate: at 0.3
            and 0.5 of it the same number of epochs ended further from the teacher.
        device: where it trains; the model is moved back to the CPU afterwards.

    Returns:
        Seconds of wall time.

    Raises:
        JobError: unsupported: there are no rows to train on; nan: the loss stays not finite.
    """
    epochs *= settings.epochs
    if epochs <= 0:
        return 0.0
    from autotune.worker.build.distillation_data import DistillationData, Teacher

    data = _rows(loaded, epochs)
    if epochs < 1 and not isinstance(data, Stream):
        data, path = _share_of(data, epochs, seed, path)
    started = time.perf_counter()
    torch.manual_seed(seed)
    with _threads(max(recipe.threads * recipe.ranks, _cores())):
        first = loaded.collate([data[0]])
        fast = recipe.precision == "bf16" or (
            device == "cpu" and _use_bf16(model, loaded, first[0], recipe.batch_size)
        )
        with _on(model, device), _layout(model, first[0], fast=fast) as laid_out:

            def arranged(batch: Any) -> Any:
                return laid_out(_moved(batch, device))

            def call(run: nn.Module, inputs: Any) -> Any:
                with _precision(device, fast=fast):
                    return loaded.call(run.to(device), arranged(inputs))

            known = Teacher(teacher, path, call) if teacher and settings.teacher else None
            distillation = DistillationData(
                loaded, data, recipe.batch_size, seed, known, paired=_has_batch_norm(model)
            )
            recovery = _RecoveryRun(
                model, loaded, recipe, distillation, arranged, settings, device=device, fast=fast
            )
            recovery.run(max(1, round(epochs)), channel)
    model.eval()
    return time.perf_counter() - started


def _rows(loaded: LoadedTask, epochs: float) -> Any:
    data: Any = loaded.train if loaded.train is not None else loaded.calibration
    if data is None or len(data) == 0:
        raise JobError(
            "unsupported",
            f"recovery_epochs is {epochs}, but the task has no training rows: "
            "define train_data() in the model file, or use recovery_epochs 0",
        )
    return data


def _share_of(data: Any, share: float, seed: int, path: Path | None) -> tuple[Any, Path | None]:
    """A random ``share`` of the rows, and the cache file of the teacher's outputs for it."""
    count = min(len(data), max(_FEWEST, math.ceil(share * len(data))))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    own = path.with_name(f"{path.stem}-{count}{path.suffix}") if path is not None else None
    return Subset(data, order[:count].tolist()), own


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _RecoveryRun:
    """Recovery of one model."""

    def __init__(
        self,
        model: nn.Module,
        loaded: LoadedTask,
        recipe: Recipe,
        data: "DistillationData",
        arranged: "Callable[[Any], Any]",
        settings: Recovery,
        *,
        device: str,
        fast: bool,
    ) -> None:
        from autotune.worker.build.distillation_loss import Distillation

        self._model, self._recipe, self._data = model, recipe, data
        self._arranged, self._fast, self._gain = arranged, fast, 0.0
        self._lr_share, self._device = settings.lr, device
        first = next(iter(data.held()))
        self._loss = Distillation(loaded, model, self._placed(first), settings)

    def run(self, epochs: int, channel: Channel) -> None:
        """Train, and load the best state into the model.

        Raises:
            JobError: nan: the loss was not finite at any learning rate.
        """
        share = self._lr_share
        best = self._held(), copy.deepcopy(self._model.state_dict())
        self._gain = _MIN_GAIN * best[0]
        for _ in range(1 + _RETRIES):
            with _trainable(self._model):
                best, finite = self._attempt(epochs, share, best, channel)
            self._model.load_state_dict(best[1])
            if finite:
                return
            share /= 10
        raise JobError("nan", "recovery training gave a loss that is not a number")

    def _attempt(
        self, epochs: int, share: float, best: tuple[float, dict[str, Any]], channel: Channel
    ) -> tuple[tuple[float, dict[str, Any]], bool]:
        """The best loss and state, and whether all losses were finite."""
        from autotune.worker.training import optimizers

        slower = msgspec.structs.replace(self._recipe, lr=self._recipe.lr * share)
        rule = optimizers.build(slower, self._model)
        steps = max(1, epochs * self._data.steps)
        done = stale = 0
        for epoch in range(1, epochs + 1):
            self._model.train()
            for batch in self._data.epoch(epoch):
                rule.zero_grad()
                loss = self._of(batch)
                if not math.isfinite(float(loss.detach())):
                    return best, False
                loss.backward()  # type: ignore[no-untyped-call]
                rule.step(_lr_factor(done, steps))
                done += 1
            held = self._held()
            if not math.isfinite(held):
                return best, False
            stale = 0 if held < best[0] - self._gain else stale + 1
            if not held > best[0]:
                best = held, copy.deepcopy(self._model.state_dict())
            if not channel.report(epoch, held) or stale >= _PATIENCE:
                break
        return best, True

    def _held(self) -> float:
        """The mean loss on the held-back rows."""
        self._model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for batch in self._data.held():
                total += float(self._of(batch)) * batch.rows
                count += batch.rows
        return total / max(1, count)

    def _of(self, batch: "DistillationBatch") -> Tensor:
        with _precision(self._device, fast=self._fast):
            return self._loss(self._model, self._placed(batch))

    def _placed(self, batch: "DistillationBatch") -> "DistillationBatch":
        return batch._replace(
            input=self._arranged(batch.input),
            target=_moved(batch.target, self._device),
            teacher_outputs=_moved(batch.teacher_outputs, self._device),
        )


def _lr_factor(step: int, steps: int) -> float:
    """The learning rate's factor: linear warm-up over a tenth of the steps, then cosine to 0."""
    from autotune.worker.training import lr_schedule

    warmup = max(1, round(_WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return lr_schedule.cosine(min(step, steps) - warmup, max(1, steps - warmup))


def _precision(device: str, *, fast: bool) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device, torch.bfloat16, enabled=fast)


def _moved(value: Any, device: str) -> Any:
    return value if device == "cpu" else to(value, device)


@contextlib.contextmanager
def _on(model: nn.Module, device: str) -> Iterator[None]:
    model.to(device)
    try:
        yield
    finally:
        model.to("cpu")


@contextlib.contextmanager
def _trainable(model: nn.Module) -> Iterator[None]:
    """Within, all floating-point parameters are trainable: frozen ones were compressed too."""
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])
            parameter.grad = None


@contextlib.contextmanager
def _layout(model: nn.Module, inputs: Any, *, fast: bool) -> "Iterator[Callable[[Any], Any]]":
    """Within, images are channels_last in bf16, which its convolutions take without a copy."""
    images = fast and isinstance(inputs, Tensor) and inputs.dim() == 4
    if not images:
        yield lambda batch: batch
        return
    lay_out(model, torch.channels_last)
    try:
        yield lambda batch: batch.contiguous(memory_format=torch.channels_last)
    finally:
        lay_out(model, torch.contiguous_format)


def _use_bf16(model: nn.Module, loaded: LoadedTask, inputs: Any, batch_size: int) -> bool:
    """Whether to train in bf16 on the CPU: it has AMX for it, and the FLOPs of a step outweigh its
    optimizer and the casts of its weights.
    """
    from autotune.forms import flat, module
    from autotune.worker.build.distillation_data import unlabelled
    from autotune.worker.evaluation.evaluate import evaluating

    if not torch.cpu.get_capabilities().get("amx_bf16", False):
        return False
    with evaluating(model):
        work = flat.flops(lambda: loaded.call(model, unlabelled(inputs)))
    return work * batch_size >= _BF16_FLOPS * module.parameters(model)


def _cores() -> int:
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable is not None else os.cpu_count() or 1


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
