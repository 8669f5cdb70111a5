"""The distance between a student's outputs and its teacher's, mixed with the task's own loss.

    outputs that are class scores      T^2 KL(softmax(teacher/T) || softmax(student/T))
    any other floating output          squared error / variance of the teacher's output

    loss = share * distance + (1 - share) * task loss

Hinton et al., arXiv 1503.02531.  Outputs count as class scores (logits) where the task's default
loss for them would be the cross-entropy.  A loss of the user's own has unknown units, so there the
distance is scaled to the student's initial task loss.  Does not compare features inside the
models: their widths differ once one of them is pruned.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autotune.errors import ContractError, JobError
from autotune.records.plan import Recovery
from autotune.worker.build.distillation_data import DistillationBatch, outputs, unlabelled
from autotune.worker.contract import LoadedTask, default_metrics, frameworks

_TINY = 1e-8


class Distillation:
    """The loss of one batch.

    Args:
        loaded: the task.
        student: the model at its start.
        first: a batch that shows whether there are teacher outputs, whether the task's loss can be
            computed, and how large it is.
        settings: the teacher's share of the loss, and the temperature.
    """

    def __init__(
        self, loaded: LoadedTask, student: nn.Module, first: DistillationBatch, settings: Recovery
    ) -> None:
        self._loaded, self._temperature = loaded, settings.temperature
        self._own = frameworks.has_training_step(student)
        self._scale = 1.0
        self._share = 0.0 if first.teacher_outputs is None else settings.teacher
        if not self._share:
            return
        with torch.no_grad():
            task, distance = self._parts(student, first)
        if task is None or not bool(task.isfinite()):
            self._share = 1.0
        elif loaded.has_own_loss:
            self._scale = float(task.abs() / distance.clamp(min=_TINY))

    def __call__(self, student: nn.Module, batch: DistillationBatch) -> Tensor:
        """The scalar loss, a mean over the batch."""
        if not self._share:
            loaded = self._loaded
            stepped = loaded.stepped(student)
            return loaded.training_loss(stepped, batch.input, batch.target)
        task, distance = self._parts(student, batch)
        if task is None or self._share == 1.0:
            return distance
        return self._share * self._scale * distance + (1 - self._share) * task

    def _parts(self, student: nn.Module, batch: DistillationBatch) -> tuple[Tensor | None, Tensor]:
        """The task's loss (None if these outputs have none) and the distance to the teacher."""
        assert batch.teacher_outputs is not None
        loaded = self._loaded
        labelled = loaded.info.has_loss and not self._own
        output = loaded.call(student, batch.input if labelled else unlabelled(batch.input))
        task: Tensor | None = None
        if labelled and (loaded.own_train is None or loaded.has_own_loss):
            try:
                task = loaded.loss(output, batch.target)
            except ContractError:
                if loaded.has_own_loss:
                    raise
        given = [o for o in outputs(output) if o.dim()]
        main = default_metrics.main_output(output)
        parts = [  # some models return further outputs in training mode, after those of eval mode
            self._classes(o, t, batch.target) if o is main else _error(o, t)
            for o, t in zip(given, batch.teacher_outputs, strict=False)
            if o.shape == t.shape
        ]
        if parts:
            return task, torch.stack(parts).mean()
        if task is None:
            raise JobError(
                "unsupported",
                "recovery has nothing to learn from: the model's outputs in training have other "
                "shapes than in eval mode, and there is no loss; define loss(output, target)",
            )
        return task, task

    def _classes(self, output: Tensor, wanted: Tensor, target: Any) -> Tensor:
        """The KL divergence where the output is class scores; else the squared error."""
        integer = isinstance(target, Tensor) and not target.is_floating_point()
        if not integer or output.dim() < 2:
            return _error(output, wanted)
        try:
            student = default_metrics.classes_second(output, target)
            teacher = default_metrics.classes_second(wanted, target)
        except ContractError:
            return _error(output, wanted)
        if student.shape[1] < 2:
            return _error(output, wanted)
        t = self._temperature
        log_student = functional.log_softmax(student.float() / t, 1)
        log_teacher = functional.log_softmax(teacher.float() / t, 1)
        each = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)
        counted = (target != default_metrics.IGNORED).float()
        mean: Tensor = (each * counted).sum() / counted.sum().clamp(min=1)
        return mean * t * t


def _error(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error over the variance of the teacher's output, or over 1 % of its mean square
    where it hardly varies.
    """
    student, teacher = student.float(), teacher.float()
    size = teacher.square().mean()
    spread = size - teacher.mean().square()
    error = functional.mse_loss(student, teacher)
    return error / torch.maximum(spread, size / 100).clamp(min=_TINY)
