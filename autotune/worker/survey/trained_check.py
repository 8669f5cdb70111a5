"""Refuses to train over weights that look trained, where nothing was said about them.

    accuracy (or R2) on up to `ROWS` rows of *validation*: not clearly better than chance -> fresh
    two models made under two seeds: most of the weights differ                          -> fresh
    19 copies with weights drawn anew: one of them is as good                            -> fresh
    else                                                                                 -> trained

Chance is the share of the commonest class, or the mean of the targets.  The first question alone
would accuse fresh models: a random direction may separate two classes, in all rows at once.
"""

import math
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from autotune.errors import ContractError
from autotune.worker.contract import LoadedTask, reinitialise
from autotune.worker.data.batch_tree import size_of
from autotune.worker.evaluation.evaluate import evaluating, fitting

ROWS, LEAST_ROWS, TIME_S, COPIES = 1000, 10, 10.0, 19


class Untrained(NamedTuple):
    """Quality before any training, and whether it is clearly better than chance."""

    metric: str
    value: float
    chance: float
    clear: bool


def check(loaded: LoadedTask) -> None:
    """Refuse to train a model that looks trained.

    Raises:
        ContractError: it does.
    """
    spec = loaded.spec
    if spec.retrain or spec.pretrained is not None or loaded.says_pretrained:
        return
    torch.manual_seed(spec.seed)
    model = loaded.given_model()
    found = quality(model, loaded)
    if found is not None and found.clear and _weights_are_given(model, loaded, found.value):
        raise ContractError(
            f"{loaded.where}: looks trained: pass --pretrained or --retrain\n"
            f"  found:   {found.metric} {found.value:.3g} before any training, chance is "
            f"{found.chance:.3g}\n"
            "  missing: --pretrained (keep the weights, search the deployment only) or --retrain\n"
            "           (train over them), or `pretrained = True` or `False` in the file"
        )


def quality(model: nn.Module, loaded: LoadedTask) -> Untrained | None:
    """Accuracy or R2 on rows spread over *validation*; None where neither is defined."""
    pairs: list[tuple[Tensor, Tensor]] = []
    count, began, size = loaded.rows("validation"), time.monotonic(), 1
    rows = np.unique(np.linspace(0, count - 1, min(count, ROWS)).astype(int)).tolist()
    np.random.default_rng(count).shuffle(rows)  # should time run out, of all classes
    with evaluating(model):
        while rows and (not pairs or time.monotonic() - began < TIME_S):
            now, rows = rows[:size], rows[size:]
            inputs, target = loaded.collate([loaded.sample("validation", row) for row in now])
            output = loaded.call(model, inputs)
            pair = loaded.functions.flattened(output, target)
            if pair is None:
                return None
            pairs.append(pair)
            if not loaded.info.ragged or loaded.has_own_collate:
                size = fitting(256, size_of(output) // len(now))
    predicted, true = (torch.cat(column) for column in zip(*pairs, strict=True))
    return (_accuracy if true.dtype == torch.int64 else _r2)(predicted, true)


def _accuracy(predicted: Tensor, true: Tensor) -> Untrained:
    """Against always answering the commonest class: exact binomial test, p < 0.001."""
    from scipy.special import bdtrc

    right, rows = int((predicted == true).sum()), len(true)
    chance = float(torch.unique(true, return_counts=True)[1].max()) / max(rows, 1)
    p_value = float(bdtrc(right - 1, rows, chance)) if right > 0 and chance < 1 else 1.0
    clear = rows >= LEAST_ROWS and p_value < 1e-3
    return Untrained("accuracy", right / max(rows, 1), chance, clear)


def _r2(predicted: Tensor, true: Tensor) -> Untrained:
    """Squared errors against those of the mean, paired: R2 > 0.1 and t > 4."""
    base = (true - true.mean()).square()
    gain = base - (predicted - true).square()
    r2 = float(gain.sum() / base.sum()) if float(base.sum()) > 0 else 0.0
    error = float(gain.std()) / math.sqrt(len(gain)) if len(gain) > 1 else math.inf
    clear = len(gain) >= LEAST_ROWS and r2 > 0.1 and float(gain.mean()) > 4.0 * error
    return Untrained("R2", r2 if math.isfinite(r2) else 0.0, 0.0, clear)


def _weights_are_given(model: nn.Module, loaded: LoadedTask, value: float) -> bool:
    """Whether the weights are the same for every seed, and better than weights drawn anew."""
    torch.manual_seed(loaded.spec.seed + 1)
    other = loaded.given_model()
    if not _mostly_equal(model, other):
        return False
    for number in range(COPIES):
        torch.manual_seed(loaded.spec.seed + 2 + number)
        reinitialise(other)
        if number == 0 and _mostly_equal(model, other):
            return True  # its modules cannot draw their weights anew: no more can be known
        again = quality(other, loaded)
        if again is not None and again.value >= value:
            return False
    return True


def _mostly_equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether half the parameters are equal, but for constant ones (fresh biases and norms)."""
    equal = count = 0
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        if a.numel() < 2 or bool((a != a.reshape(-1)[0]).any()):
            count += a.numel()
            equal += a.numel() if torch.equal(a, b) else 0
    return count > 0 and 2 * equal >= count
