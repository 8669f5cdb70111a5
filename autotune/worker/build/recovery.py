"""Recovery training: a pruned model learns again, from the dense one and from the labels.

    start ── epoch ── held back ── epoch ── held back ── ... ── the best of them is kept
             loss: `distilling`, rows: `lessons`, learning rate: warm-up, then a cosine to 0

The recipe's optimizer, batch and precision; its schedule, clipping, smoothing and averaging
are for training from scratch.  Ends early where the loss on what is held back hardly falls any
more, measured by what pruning did to it: shallow levels are cheap.
A loss that is not a number goes back to the best so far, at a tenth of the learning rate.
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

    from autotune.worker.build.distillation_data import Lesson, Lessons

_RISE = 0.1  # of all steps
_GAIN = 0.005  # of the loss that pruning left: less is no gain
_PATIENCE = 2  # epochs without one
_RETRIES = 2
_FEWEST = 256  # rows of a share
_USUAL = Recovery()
_DENSE = 2000.0  # FLOPs of a batch a parameter: bf16 pays from here (see `_fast`)


def recover(
    model: nn.Module,
    loaded: LoadedTask,
    recipe: Recipe,
    epochs: float,
    seed: int,
    channel: Channel,
    teacher: "Callable[[], nn.Module] | None" = None,
    path: Path | None = None,
    manner: Recovery = _USUAL,
    device: str = "cpu",
) -> float:
    """Train ``model`` in place on *train* (or *calibration*); reports each epoch's held-back loss.

    Args:
        model: what was pruned.
        loaded: the task.
        recipe: how the dense model was trained.
        epochs: at most so many; under 1, one pass over that share of the rows.
        seed: of the order of rows and of dropout.
        channel: told each epoch's loss on what is held back.
        teacher: makes the dense model; without it there is the task's loss alone.
        path: where the teacher's outputs are kept between builds.
        manner: what of it may be searched (``--joint``): without that the recipe's own learning
            rate, as at 0.3 and 0.5 of it the same few epochs end further from the teacher.
        device: where it trains; the model comes back to the processor.

    Returns:
        The seconds it took.

    Raises:
        JobError: unsupported where there is nothing to train on, nan for such a loss.
    """
    epochs *= manner.epochs
    if epochs <= 0:
        return 0.0
    from autotune.worker.build.distillation_data import Lessons, Teacher

    data = _rows(loaded, epochs)
    if epochs < 1 and not isinstance(data, Stream):
        data, path = _share_of(data, epochs, seed, path)
    started = time.perf_counter()
    torch.manual_seed(seed)
    with _threads(max(recipe.threads * recipe.ranks, _cores())):
        first = loaded.collate([data[0]])
        fast = recipe.precision == "bf16" or (
            device == "cpu" and _fast(model, loaded, first[0], recipe.batch_size)
        )
        with _on(model, device), _layout(model, first[0], fast=fast) as laid_out:

            def arranged(batch: Any) -> Any:
                return laid_out(_moved(batch, device))

            def call(run: nn.Module, inputs: Any) -> Any:
                with _precision(device, fast=fast):
                    return loaded.call(run.to(device), arranged(inputs))

            known = Teacher(teacher, path, call) if teacher and manner.teacher else None
            lessons = Lessons(
                loaded, data, recipe.batch_size, seed, known, paired=_has_batch_norm(model)
            )
            course = _Course(
                model, loaded, recipe, lessons, arranged, manner, device=device, fast=fast
            )
            course.run(max(1, round(epochs)), channel)
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
    """So large a part of the rows, by seed, and where the teacher's outputs for it are kept."""
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


class _Course:
    """One model's recovery."""

    def __init__(
        self,
        model: nn.Module,
        loaded: LoadedTask,
        recipe: Recipe,
        lessons: "Lessons",
        arranged: "Callable[[Any], Any]",
        manner: Recovery,
        *,
        device: str,
        fast: bool,
    ) -> None:
        from autotune.worker.build.distillation_loss import Distillation

        self._model, self._recipe, self._lessons = model, recipe, lessons
        self._arranged, self._fast, self._gain = arranged, fast, 0.0
        self._lr_share, self._device = manner.lr, device
        first = next(iter(lessons.held()))
        self._loss = Distillation(loaded, model, self._placed(first), manner)

    def run(self, epochs: int, channel: Channel) -> None:
        """Train, and leave the best state in the model.

        Raises:
            JobError: nan, at every learning rate tried.
        """
        share = self._lr_share
        best = self._held(), copy.deepcopy(self._model.state_dict())
        self._gain = _GAIN * best[0]
        for _ in range(1 + _RETRIES):
            with _trainable(self._model):
                best, whole = self._attempt(epochs, share, best, channel)
            self._model.load_state_dict(best[1])
            if whole:
                return
            share /= 10
        raise JobError("nan", "recovery training gave a loss that is not a number")

    def _attempt(
        self, epochs: int, share: float, best: tuple[float, dict[str, Any]], channel: Channel
    ) -> tuple[tuple[float, dict[str, Any]], bool]:
        """The best loss and state, and whether all losses were numbers."""
        from autotune.worker.training import optimizers

        slower = msgspec.structs.replace(self._recipe, lr=self._recipe.lr * share)
        rule = optimizers.build(slower, self._model)
        steps = max(1, epochs * self._lessons.steps)
        done = stale = 0
        for epoch in range(1, epochs + 1):
            self._model.train()
            for lesson in self._lessons.epoch(epoch):
                rule.zero_grad()
                loss = self._of(lesson)
                if not math.isfinite(float(loss.detach())):
                    return best, False
                loss.backward()  # type: ignore[no-untyped-call]
                rule.step(_share(done, steps))
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
        """The mean loss on what is held back."""
        self._model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for lesson in self._lessons.held():
                total += float(self._of(lesson)) * lesson.rows
                count += lesson.rows
        return total / max(1, count)

    def _of(self, lesson: "Lesson") -> Tensor:
        with _precision(self._device, fast=self._fast):
            return self._loss(self._model, self._placed(lesson))

    def _placed(self, lesson: "Lesson") -> "Lesson":
        return lesson._replace(
            input=self._arranged(lesson.input),
            target=_moved(lesson.target, self._device),
            answer=_moved(lesson.answer, self._device),
        )


def _share(step: int, steps: int) -> float:
    """A linear rise over the first tenth of the steps, then a cosine towards 0."""
    from autotune.worker.training import lr_schedule

    rise = max(1, round(_RISE * steps))
    if step < rise:
        return (step + 1) / rise
    return lr_schedule.cosine(min(step, steps) - rise, max(1, steps - rise))


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
    """What the user froze for training was pruned like the rest, so it learns too."""
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
    """Images with their channels last, which bf16 convolutions take as they are."""
    images = fast and isinstance(inputs, Tensor) and inputs.dim() == 4
    if not images:
        yield lambda batch: batch
        return
    lay_out(model, torch.channels_last)
    try:
        yield lambda batch: batch.contiguous(memory_format=torch.channels_last)
    finally:
        lay_out(model, torch.contiguous_format)


def _fast(model: nn.Module, loaded: LoadedTask, inputs: Any, batch_size: int) -> bool:
    """Whether to train in bf16: where the processor has matrix units for it and a step's
    arithmetic outweighs its optimizer and its casts of the weights.
    """
    from autotune.forms import flat, module
    from autotune.worker.build.distillation_data import unlabelled
    from autotune.worker.evaluation.evaluate import evaluating

    if not torch.cpu.get_capabilities().get("amx_bf16", False):
        return False
    with evaluating(model):
        work = flat.flops(lambda: loaded.call(model, unlabelled(inputs)))
    return work * batch_size >= _DENSE * module.parameters(model)


def _cores() -> int:
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable is not None else os.cpu_count() or 1


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
