"""The loss and the score that a task gets where the user gave none.

Shapes: B batch, C classes, ... anything (tokens, pixels).

    targets          loss            score (higher is better)        name
    integers [B]     cross-entropy   1 where argmax is right, else 0 accuracy
    integers [B,...] cross-entropy   share of right ones per sample  token_accuracy
    floats           squared error   minus squared error per sample  neg_mse
    floats 0/1, BCE  the user's      1 on the right side of 0.5      accuracy

Outputs are ``[B, C, ...]`` as torch has it, or ``[B, ..., C]`` as transformers has it.
Labels of -100 are ignored, as torch's cross-entropy does.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from autotune.errors import ContractError

IGNORED = -100


def main_output(output: Any) -> Tensor | None:
    """The tensor that the defaults use: the output itself, its ``logits``, or its first."""
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(output, Mapping):
        first = output.get("logits", next(iter(output.values()), None))
        return first if isinstance(first, Tensor) else None
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    return None


def smoothable(output: Any, target: Any) -> bool:
    """Whether the default loss is the cross-entropy: neither the model's own nor of floats."""
    own = isinstance(getattr(output, "loss", None), Tensor)
    return not own and isinstance(target, Tensor) and not target.is_floating_point()


def loss(output: Any, target: Any, shifted: bool = False, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy for integer targets, mean squared error for floats; a scalar.

    Args:
        output: the model's output, ``[B, C, ...]`` or ``[B, ..., C]`` for C classes; where it
            holds its own ``loss``, that is taken.
        target: ``[B, ...]``.
        shifted: the target of token t is token t + 1 (transformers' causal models).
        smoothing: share of the cross-entropy's targets that is spread evenly over all classes
            (Szegedy et al., arXiv 1512.00567).

    Raises:
        ContractError: output and target do not fit together.
    """
    own = getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return own.mean()
    pred, true = _tensors(output, target, "loss")
    if shifted:
        pred, true = pred[:, :-1], true[:, 1:]
    if not true.is_floating_point():
        logits = classes_second(pred, true)
        return functional.cross_entropy(
            logits, true.long(), ignore_index=IGNORED, label_smoothing=smoothing
        )
    return functional.mse_loss(alike(pred, true), true.to(pred.dtype))


def score(
    output: Any, target: Any, threshold: float | None = None, shifted: bool = False
) -> Tensor:
    """Quality per sample, ``[B]`` floats, higher is better.

    Args:
        output: the model's output.
        target: ``[B, ...]``.
        threshold: for float 0/1 targets: where the output turns from class 0 to class 1.
        shifted: the target of token t is token t + 1.

    Raises:
        ContractError: output and target do not fit together.
    """
    pred, true = _tensors(output, target, "score")
    if shifted:
        pred, true = pred[:, :-1], true[:, 1:]
    if not true.is_floating_point():
        logits = classes_second(pred, true)
        right = (logits.argmax(1) == true).float()
        counted = (true != IGNORED).float()
        if true.dim() == 1:
            return right
        return (right * counted).flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)
    pred = alike(pred, true)
    if threshold is not None:
        right = ((pred > threshold) == (true > 0.5)).float()
        return right.flatten(1).mean(1) if right.dim() > 1 else right
    error = (pred.float() - true.float()).square()
    return -(error.flatten(1).mean(1) if error.dim() > 1 else error)


def classes(
    output: Any, target: Any, threshold: float | None = None
) -> tuple[Tensor, Tensor] | None:
    """Predicted and true classes, ``[B]`` each, of plain classification; else None."""
    pred = main_output(output)
    if pred is None or not isinstance(target, Tensor) or len(pred) != len(target):
        return None
    if threshold is not None and pred.numel() == target.numel() == len(target):
        return (pred > threshold).reshape(-1).long(), (target > 0.5).reshape(-1).long()
    if target.dim() == 1 and not target.is_floating_point() and pred.dim() == 2:
        return pred.argmax(1), target
    return None


def flattened(
    output: Any, target: Any, threshold: float | None = None, shifted: bool = False
) -> tuple[Tensor, Tensor] | None:
    """Predicted and true values of every sample, token or pixel, ``[n]`` each: classes as int64,
    numbers as float64.  None where output and target do not fit together.
    """
    found = classes(output, target, threshold)
    if found is not None:
        return found[0].long(), found[1].long()
    pred = main_output(output)
    if pred is None or not isinstance(target, Tensor):
        return None
    if shifted:
        pred, target = pred[:, :-1], target[:, 1:]
    try:
        if target.is_floating_point():
            return alike(pred, target).double().reshape(-1), target.double().reshape(-1)
        pred = classes_second(pred, target).argmax(1)
    except ContractError:
        return None
    return pred[target != IGNORED].long(), target[target != IGNORED].long()


def metric(target: Any, threshold: float | None) -> str:
    """The name of the default score for a batch of targets."""
    if not isinstance(target, Tensor) or target.is_floating_point():
        if threshold is None:
            return "neg_mse"
        return "accuracy" if target.numel() == len(target) else "label_accuracy"
    return "accuracy" if target.dim() == 1 else "token_accuracy"


def threshold_of(criterion: Any) -> float | None:
    """The output at which one of torch's binary criteria turns from 0 to 1; else None."""
    if isinstance(criterion, torch.nn.BCEWithLogitsLoss):
        return 0.0
    return 0.5 if isinstance(criterion, torch.nn.BCELoss) else None


def _tensors(output: Any, target: Any, what: str) -> tuple[Tensor, Tensor]:
    pred = main_output(output)
    if pred is None or not isinstance(target, Tensor):
        raise ContractError(
            f"there is no default {what} for an output of type {type(output).__name__} and a "
            f"target of type {type(target).__name__}\n"
            f"  missing: {what}(output, target)\n"
            f"  fix it with:\n"
            f"      def {what}(output, target):\n"
            f"          return ...  # {'a scalar' if what == 'loss' else 'one number per sample'}"
        )
    return pred, target


def classes_second(pred: Tensor, true: Tensor) -> Tensor:
    """``[B, C, ...]`` whichever way the output has its classes."""
    if pred.dim() == true.dim() + 1 and len(pred) == len(true):
        if (pred.shape[0], *pred.shape[2:]) == tuple(true.shape):
            return pred
        if pred.shape[:-1] == true.shape:
            return pred.movedim(-1, 1)
    raise _mismatch(
        pred,
        true,
        "class targets need outputs [batch, classes]",
        ["def make_model():", "    ...  # end with", "    nn.Linear(hidden, classes)"],
    )


def alike(pred: Tensor, true: Tensor) -> Tensor:
    """The output in the target's shape; only dimensions of size one may differ."""
    if pred.shape == true.shape:
        return pred
    squeezed = [size for size in pred.shape[1:] if size != 1]
    if len(pred) == len(true) and squeezed == [size for size in true.shape[1:] if size != 1]:
        return pred.reshape(true.shape)
    raise _mismatch(
        pred,
        true,
        "float targets need outputs of the same shape",
        ["def make_model():", "    ...  # end with", f"    nn.Linear(hidden, {true[0].numel()})"],
    )


def _mismatch(pred: Tensor, true: Tensor, rule: str, fix: list[str]) -> ContractError:
    return ContractError(
        f"output and target do not fit together: {rule}\n"
        f"  found:   output {list(pred.shape)} {_name(pred)}, target {list(true.shape)} "
        f"{_name(true)}\n"
        "  fix it with:\n" + "\n".join(f"      {line}" for line in fix)
    )


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
