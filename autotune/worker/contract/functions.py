"""The user's loss, score, quality and metric, checked at each call, or the defaults.

score(output, target) -> [batch]      streamed; gives the exact paired test
metric() -> update(...), compute()    streamed; for outputs too large to keep
quality(output, target) -> float      over a whole set whose outputs are kept
"""

from typing import Any

from torch import Tensor

from autotune.errors import ContractError
from autotune.worker.contract import agreement, default_metrics
from autotune.worker.data import samples
from autotune.worker.user_file import names, run
from autotune.worker.user_file.errors import contract_error, guard

RATES = ("accuracy", "balanced_accuracy", "label_accuracy", "token_accuracy", agreement.METRIC)


class Functions:
    """Loss and quality of outputs.

    Attributes:
        balanced: the default accuracy is weighted so that every class counts the same.
        unlabelled: targets are numbers of rows, which stand for ``answers`` (see `agreement`).
        shifted: targets are the inputs of a causal language model (see `frameworks`).
        plain: the user's ``score``, ``quality`` and ``metric`` are all absent.
    """

    def __init__(self, origin: run.Source) -> None:
        self._origin = origin
        self.where, self.path = origin.where, origin.path
        losses = run.LOSSES if origin.form == "script" else ("loss",)
        self.own_loss = names.function(origin, *losses)
        self.own_score = names.function(origin, "score")
        self.own_quality = names.function(origin, "quality")
        self.own_metric = names.function(origin, "metric")
        self.plain = not (self.own_score or self.own_quality or self.own_metric)
        self.higher_is_better = names.flag(origin, "higher_is_better", True)
        self.threshold = default_metrics.threshold_of(self.own_loss)
        self.balanced = False
        self.shifted = False
        self.unlabelled = False
        self.answers: agreement.Answers | None = None

    def balance(self, rare: bool, target: Any) -> None:
        """Use balanced accuracy where a class is rare and the metric would be accuracy."""
        self.balanced = (
            self.plain and rare and default_metrics.metric(target, self.threshold) == RATES[0]
        )

    def name(self, target: Any) -> str:
        """The metric's name."""
        own = self.own_score or self.own_quality or self.own_metric
        if own is not None:
            kind = "score" if self.own_score else "quality" if self.own_quality else "metric"
            return str(getattr(own, "__name__", kind))
        if self.unlabelled:
            return agreement.METRIC
        return (
            "balanced_accuracy" if self.balanced else default_metrics.metric(target, self.threshold)
        )

    def loss(self, output: Any, target: Any, smoothing: float = 0.0) -> Tensor:
        """The training loss: a scalar, mean over the batch.

        Raises:
            ContractError: the user's function returns no scalar, no default fits, or label
                smoothing is asked for and the loss is not the default cross-entropy.
        """
        if smoothing and not self.smoothable(output, target):
            raise self.unsmoothable(smoothing)
        target = self._true(target)
        if self.own_loss is None and self.unlabelled:
            return self._located(agreement.loss, output, target)
        if self.own_loss is None:
            return self._located(default_metrics.loss, output, target, self.shifted, smoothing)
        with guard(self.where, "loss(output, target)", self.path):
            value = self.own_loss(output, target)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise contract_error(
                self.where,
                "loss(output, target) must return one number, the mean over the batch",
                found=samples.describe(value),
                fix="def loss(output, target):\n    per_sample = ...\n    return per_sample.mean()",
            )
        return value.reshape(())

    def smoothable(self, output: Any, target: Any) -> bool:
        """Whether the loss is the default cross-entropy, which can smooth its labels."""
        return self.own_loss is None and default_metrics.smoothable(output, target)

    def unsmoothable(self, smoothing: float) -> ContractError:
        """The error for label smoothing where the loss is not the default cross-entropy."""
        return contract_error(
            self.where,
            "label_smoothing needs the default loss, the cross-entropy of integer targets",
            found=f"label_smoothing {smoothing:g} with a loss of the task's own, or float targets",
            fix="def loss(output, target):\n"
            f"    return F.cross_entropy(output, target, label_smoothing={smoothing:g})",
            hint="or leave label_smoothing out of the recipe",
        )

    def score(self, output: Any, target: Any) -> Tensor | None:
        """Quality per sample ``[batch]``, float32, or None where only a whole set has one.

        Where accuracy is balanced this is still the plain 0 or 1: the weights need the classes
        of the whole part (`evaluate.Tally` applies them).

        Raises:
            ContractError: the user's function returns another shape, or no default fits.
        """
        if self.own_score is None and not self.plain:
            return None
        target = self._true(target)
        if self.own_score is None and self.unlabelled:
            return self._located(agreement.score, output, target)
        if self.own_score is None:
            return self._located(
                default_metrics.score, output, target, self.threshold, self.shifted
            ).float()
        with guard(self.where, "score(output, target)", self.path):
            value = self.own_score(output, target)
        like = target if isinstance(target, Tensor) else default_metrics.main_output(output)
        rows = 0 if like is None else len(like)
        if not isinstance(value, Tensor) or tuple(value.shape) != (rows,):
            raise contract_error(
                self.where,
                f"score(output, target) must return one number per sample, shape [{rows}] here",
                found=samples.describe(value),
                fix="def score(output, target):\n"
                "    right = output.argmax(1) == target\n"
                "    return right.float()  # or: def quality(output, target) -> float",
            )
        return value.float()

    def new_metric(self) -> Any:
        """A fresh object of the user's ``metric()``.

        Raises:
            ContractError: it has no ``update`` or no ``compute``.
        """
        assert self.own_metric is not None
        with guard(self.where, "metric()", self.path):
            made = self.own_metric()
        missing = [name for name in ("update", "compute") if not callable(getattr(made, name, 0))]
        if missing:
            raise contract_error(
                self.where,
                "metric() must return an object with update(output, target) and compute()",
                found=f"a {type(made).__name__} without {' and '.join(missing)}",
                fix="class Accuracy:\n"
                "    right = count = 0\n"
                "    def update(self, output, target):\n"
                "        self.right += (output.argmax(1) == target).sum().item()\n"
                "        self.count += len(target)\n"
                "    def compute(self):\n"
                "        return self.right / self.count\n"
                "metric = Accuracy",
            )
        return made

    def update(self, metric: Any, output: Any, target: Any) -> None:
        """Feed one batch to a metric object."""
        target = self._true(target)
        with guard(self.where, "metric().update(output, target)", self.path):
            metric.update(output, target)

    def compute(self, metric: Any) -> float:
        """A metric object's number."""
        with guard(self.where, "metric().compute()", self.path):
            value = metric.compute()
        return self._number(value, "metric().compute()")

    def quality(self, output: Any, target: Any) -> float:
        """One number over a whole set: the user's ``quality`` or ``metric``, else the mean of
        `score`.
        """
        if self.plain or self.own_score is not None:
            score = self.score(output, target)
            assert score is not None
            return float(score.double().mean())
        if self.own_quality is None:
            metric = self.new_metric()
            self.update(metric, output, target)
            return self.compute(metric)
        target = self._true(target)
        call = f"{self.name(target)}(output, target)"
        with guard(self.where, call, self.path):
            value = self.own_quality(output, target)
        return self._number(value, call)

    def classes(self, output: Any, target: Any) -> tuple[Tensor, Tensor] | None:
        """Predicted and true classes, ``[batch]`` each; None unless each row has one."""
        return None if self.unlabelled else default_metrics.classes(output, target, self.threshold)

    def flattened(self, output: Any, target: Any) -> tuple[Tensor, Tensor] | None:
        """Predicted and true values of every sample, token or pixel, as the defaults see them."""
        return default_metrics.flattened(output, target, self.threshold, self.shifted)

    def _true(self, target: Any) -> Any:
        """The targets, or the answers that they stand for."""
        if not self.unlabelled:
            return target
        if self.answers is None:
            raise agreement.missing()
        return self.answers.of(target)

    def _number(self, value: Any, call: str) -> float:
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            raise contract_error(
                self.where,
                f"{call} must return one number over the whole set",
                found=samples.describe(value),
                fix="def quality(output, target):\n"
                "    per_sample = ...\n"
                "    return float(per_sample.mean())",
            ) from None

    def _located(self, function: Any, *arguments: Any) -> Tensor:
        try:
            found: Tensor = function(*arguments)
        except ContractError as error:
            raise ContractError(f"{self.where}: {error}") from None
        return found
