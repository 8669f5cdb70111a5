"""Does a model look trained, before we train it?  Nothing must train over a person's weights.

    quality on up to ROWS rows of validation ── clearly better than chance? ── no: fresh
                                                    │ yes
    two models under two seeds ── drawn anew? ── yes: fresh, and lucky
                                                    │ no: the same weights, whatever the seed
    redrawn copies ── one of them as good? ── yes: fresh, and lucky
                                                    │ no: looks trained

Chance is the share of the commonest class, or the mean of the targets.  Untrained models can
be far better than that (a random direction may separate two classes), all rows at once, so
that a test over rows alone would accuse them: hence the second and third question, which are
asked only where the first was answered with yes.
"""

import math
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from autotune.errors import ContractError
from autotune.worker.contract import default_metrics
from autotune.worker.contract.model_factory import reinitialise
from autotune.worker.contract.task import LoadedTask
from autotune.worker.data.batch_tree import size_of
from autotune.worker.evaluation.evaluate import evaluating, fitting

ROWS = 1000
TIME_S = 10.0
COPIES = 19
_ALPHA = 1e-3
_STUDENT = 4.0
_LEAST_R2 = 0.1
_LEAST_ROWS = 10
_SAME = 0.5


class Guess(NamedTuple):
    """How good a model is on some rows, and whether that is clearly better than chance."""

    what: str
    value: float
    chance: float
    clear: bool

    def __str__(self) -> str:
        return f"{self.what} {self.value:.3g} before any training, chance is {self.chance:.3g}"


def check(loaded: LoadedTask) -> None:
    """Refuse to train a model that looks trained, where nothing was said about it.

    Raises:
        ContractError: it does.
    """
    spec = loaded.spec
    if spec.retrain or spec.pretrained is not None or loaded.says_pretrained:
        return
    torch.manual_seed(spec.seed)
    model = loaded.given_model()
    found = guess(model, loaded)
    if found is None or not found.clear or not _given(model, loaded, found):
        return
    raise ContractError(
        f"{loaded.where}: looks trained: pass --pretrained or --retrain\n"
        f"  found:   {found}\n"
        "  missing: --pretrained (keep the weights, search the deployment only) or --retrain\n"
        "           (train over them), or `pretrained = True` or `False` in the file"
    )


def guess(model: nn.Module, loaded: LoadedTask) -> Guess | None:
    """Accuracy or R2 on rows of *validation* spread over it; None where neither is defined."""
    outputs: list[Tensor] = []
    targets: list[Tensor] = []
    began = time.monotonic()
    count = len(loaded.validation)  # type: ignore[arg-type]
    rows = np.unique(np.linspace(0, count - 1, min(count, ROWS)).astype(int)).tolist()
    np.random.default_rng(count).shuffle(rows)  # should time run out, of all classes
    size = 1
    with evaluating(model):
        while rows and (not targets or time.monotonic() - began < TIME_S):
            one_by_one = loaded.info.ragged and not loaded.has_own_collate
            now, rows = rows[: 1 if one_by_one else size], rows[1 if one_by_one else size :]
            inputs, target = loaded.collate([loaded.sample("validation", row) for row in now])
            output = loaded.call(model, inputs)
            pair = _right(output, target, loaded)
            if pair is None:
                return None
            outputs.append(pair[0])
            targets.append(pair[1])
            size = fitting(256, size_of(output) // len(now))
    said, true = torch.cat(outputs), torch.cat(targets)
    return _classes(said, true) if true.dtype == torch.int64 else _numbers(said, true)


def _right(output: Any, target: Any, loaded: LoadedTask) -> tuple[Tensor, Tensor] | None:
    """What was said and what is true, flat: classes as int64, numbers as float64."""
    functions = loaded.functions
    found = functions.classes(output, target)
    if found is not None:
        return found[0].long(), found[1].long()
    pred = default_metrics.main_output(output)
    if pred is None or not isinstance(target, Tensor):
        return None
    if functions.shifted:
        pred, target = pred[:, :-1], target[:, 1:]
    try:
        if target.is_floating_point():
            pred = default_metrics.alike(pred, target)
            return pred.double().reshape(-1), target.double().reshape(-1)
        said = default_metrics.classes_second(pred, target).argmax(1)
    except ContractError:
        return None
    counted = target != default_metrics.IGNORED
    return said[counted].long(), target[counted].long()


def _classes(said: Tensor, true: Tensor) -> Guess:
    """Right answers against always saying the commonest class, exact binomial."""
    from scipy.special import bdtrc

    rows = len(true)
    right = int((said == true).sum())
    _, counts = torch.unique(true, return_counts=True)
    share = float(counts.max()) / max(rows, 1)
    p_value = float(bdtrc(right - 1, rows, share)) if right > 0 and share < 1 else 1.0
    clear = rows >= _LEAST_ROWS and p_value < _ALPHA
    return Guess("accuracy", right / max(rows, 1), share, clear)


def _numbers(said: Tensor, true: Tensor) -> Guess:
    """Squared errors against those of the mean, paired."""
    base = (true - true.mean()).square()
    gain = base - (said - true).square()
    r2 = float(gain.sum() / base.sum()) if float(base.sum()) > 0 else 0.0
    spread = float(gain.std()) if len(gain) > 1 else math.inf
    clear = (
        len(gain) >= _LEAST_ROWS
        and r2 > _LEAST_R2
        and float(gain.mean()) > _STUDENT * spread / math.sqrt(len(gain))
    )
    return Guess("R2", r2 if math.isfinite(r2) else 0.0, 0.0, clear)


def _given(model: nn.Module, loaded: LoadedTask, found: Guess) -> bool:
    """Whether the weights are given rather than drawn."""
    torch.manual_seed(loaded.spec.seed + 1)
    other = loaded.given_model()
    if not _mostly_equal(model, other):
        return False
    for number in range(COPIES):
        torch.manual_seed(loaded.spec.seed + 2 + number)
        reinitialise(other)
        if number == 0 and _mostly_equal(model, other):
            return True  # its modules cannot draw themselves anew: no more can be known
        again = guess(other, loaded)
        if again is not None and again.value >= found.value:
            return False
    return True


def _mostly_equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether most parameters (constant ones aside, as fresh biases and norms are) are equal."""
    equal = count = 0
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        if a.numel() > 1 and bool((a == a.reshape(-1)[0]).all()):
            continue
        count += a.numel()
        equal += a.numel() if torch.equal(a, b) else 0
    return count > 0 and equal >= _SAME * count
