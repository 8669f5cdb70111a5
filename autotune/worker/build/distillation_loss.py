"""How far a student's outputs are from its teacher's, beside the task's own loss.

    outputs that are classes' scores   T^2 KL(softmax(teacher/T) || softmax(student/T))
    any other floating output          squared error / variance of the teacher's output

    loss = share * distance + (1 - share) * task loss

Hinton et al., arXiv 1503.02531.  Outputs count as scores of classes where the task's default
loss for them would be the cross-entropy.  Where the loss is the user's own, nobody knows the
units of it, so the distance is scaled to the task loss that the student begins with.  Does not
look at features inside the models: their widths differ once one of them is pruned.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autotune.errors import ContractError, JobError
from autotune.records.plan import Recovery
from autotune.worker.build.distillation_data import Lesson, outputs, unlabelled
from autotune.worker.contract import LoadedTask, default_metrics, frameworks

_TINY = 1e-8


class Distillation:
    """The loss of a lesson.

    Args:
        loaded: the task.
        student: the model at its start.
        first: a lesson to look at: whether there is a teacher's answer, whether the task's loss
            can be used, and how large it is.
        manner: the teacher's share, and the temperature.
    """

    def __init__(
        self, loaded: LoadedTask, student: nn.Module, first: Lesson, manner: Recovery
    ) -> None:
        self._loaded, self._temperature = loaded, manner.temperature
        self._own = frameworks.has_training_step(student)
        self._scale = 1.0
        self._share = 0.0 if first.answer is None else manner.teacher
        if not self._share:
            return
        with torch.no_grad():
            task, distance = self._parts(student, first)
        if task is None or not bool(task.isfinite()):
            self._share = 1.0
        elif loaded.has_own_loss:
            self._scale = float(task.abs() / distance.clamp(min=_TINY))

    def __call__(self, student: nn.Module, lesson: Lesson) -> Tensor:
        """A scalar, the mean over the batch."""
        if not self._share:
            loaded = self._loaded
            stepped = loaded.stepped(student)
            return loaded.training_loss(stepped, lesson.input, lesson.target)
        task, distance = self._parts(student, lesson)
        if task is None or self._share == 1.0:
            return distance
        return self._share * self._scale * distance + (1 - self._share) * task

    def _parts(self, student: nn.Module, lesson: Lesson) -> tuple[Tensor | None, Tensor]:
        """The task's loss, where there is one for these outputs, and the distance."""
        assert lesson.answer is not None
        loaded = self._loaded
        labelled = loaded.info.has_loss and not self._own
        output = loaded.call(student, lesson.input if labelled else unlabelled(lesson.input))
        task: Tensor | None = None
        if labelled and (loaded.own_train is None or loaded.has_own_loss):
            try:
                task = loaded.loss(output, lesson.target)
            except ContractError:
                if loaded.has_own_loss:
                    raise
        said = [o for o in outputs(output) if o.dim()]
        main = default_metrics.main_output(output)
        parts = [  # in training some models give more outputs, behind those that they give in use
            self._classes(o, a, lesson.target) if o is main else _error(o, a)
            for o, a in zip(said, lesson.answer, strict=False)
            if o.shape == a.shape
        ]
        if parts:
            return task, torch.stack(parts).mean()
        if task is None:
            raise JobError(
                "unsupported",
                "recovery has nothing to learn from: the model's outputs in training have other "
                "shapes than in use, and there is no loss; define loss(output, target)",
            )
        return task, task

    def _classes(self, said: Tensor, answer: Tensor, target: Any) -> Tensor:
        """The divergence, where the output scores classes; else the squared error."""
        whole = isinstance(target, Tensor) and not target.is_floating_point()
        if not whole or said.dim() < 2:
            return _error(said, answer)
        try:
            student = default_metrics.classes_second(said, target)
            teacher = default_metrics.classes_second(answer, target)
        except ContractError:
            return _error(said, answer)
        if student.shape[1] < 2:
            return _error(said, answer)
        t = self._temperature
        soft = functional.log_softmax(student.float() / t, 1)
        aim = functional.log_softmax(teacher.float() / t, 1)
        each = functional.kl_div(soft, aim, reduction="none", log_target=True).sum(1)
        counted = (target != default_metrics.IGNORED).float()
        mean: Tensor = (each * counted).sum() / counted.sum().clamp(min=1)
        return mean * t * t


def _error(said: Tensor, answer: Tensor) -> Tensor:
    """Squared error in variances of the answer, or hundredths of its size if it hardly varies."""
    said, answer = said.float(), answer.float()
    size = answer.square().mean()
    spread = size - answer.mean().square()
    return functional.mse_loss(said, answer) / torch.maximum(spread, size / 100).clamp(min=_TINY)
