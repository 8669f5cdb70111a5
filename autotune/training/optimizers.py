"""Optimizers by family: their learning-rate ranges, what else is searched, and initial recipes.

The optimizers of a family share one learning-rate dimension, so that the sampler carries over what
it has seen of one to the next.  Ranges are priors: they hold PyTorch's default and what published
recipes use.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from autotune.records.plan import Optimizer, Recipe
from autotune.records.task import Dim, Node
from autotune.search.space import LR, choice


class Family(NamedTuple):
    """Optimizers whose learning rates make steps of about the same size, and the range searched."""

    name: str
    rules: tuple[Optimizer, ...]
    low: float
    high: float

    @property
    def lr(self) -> str:
        return LR + self.name


# Muon's update has the size of AdamW's; momentum 0.9 multiplies the steps of sgd by ten;
# Adafactor's rate is relative to the size of the weights.
FAMILIES = (
    Family("adaptive", ("adam", "adamw", "nadam", "radam", "muon"), 1e-4, 3e-2),
    Family("sgd", ("sgd",), 1e-3, 1.0),
    Family("momentum", ("momentum", "nesterov"), 3e-4, 0.3),
    Family("rmsprop", ("rmsprop",), 3e-5, 1e-2),
    Family("adafactor", ("adafactor",), 1e-3, 0.1),
)
_BATCH = 32
_LINEAR = ("sgd", "momentum")
_MOST_TIMES = 8.0
HEAVY: tuple[Optimizer, ...] = ("momentum", "nesterov")
TWO_MOMENTS: tuple[Optimizer, ...] = ("adam", "adamw", "nadam", "radam")


def of(rule: str) -> Family:
    """The family of an optimizer."""
    return next(family for family in FAMILIES if rule in family.rules)


def nodes(names: tuple[str, ...]) -> Iterator[Node]:
    """The dimensions of the optimizer and of what depends on it; ``names`` are those allowed."""
    yield Node(dim=choice("optimizer", names))
    for family in FAMILIES:
        dim = Dim(name=family.lr, kind="float", low=family.low, high=family.high, log=True)
        yield from _under(dim, family.rules, names)
    yield from _under(choice("beta1", (0.9, 0.8, 0.95)), TWO_MOMENTS, names)
    yield from _under(choice("beta2", (0.999, 0.95, 0.99)), TWO_MOMENTS, names)
    yield from _under(Dim(name="momentum", kind="float", low=0.8, high=0.98), HEAVY, names)


def _under(dim: Dim, rules: tuple[str, ...], names: tuple[str, ...]) -> Iterator[Node]:
    found = tuple(name for name in rules if name in names)
    if found:
        yield Node(dim=dim, parent="optimizer", values=found)


def scale(rule: str, batch: int) -> float:
    """Factor by which a learning rate for a batch of 32 is scaled at another batch size, a prior.

    The square root of the batches' ratio for adaptive optimizers (Malladi et al.,
    arXiv 2205.10287), the ratio itself for SGD and momentum (Goyal et al., arXiv 1706.02677), which
    does not hold for large batches: at most eightfold.
    """
    times = batch / _BATCH
    return min(times if of(rule).name in _LINEAR else math.sqrt(times), _MOST_TIMES)


_USUAL = 4  # times the default's batch
AVERAGED = 0.99
"""Decay of the averaged weights of what a search begins with."""


def initial(
    default: Recipe, fast: int, precision: str, *, times: int = _USUAL
) -> tuple[tuple[Recipe, str], ...]:
    """What to try before the sampler knows anything, the likeliest first.

    Recipes in use, at the default's batch or at ``times`` it but no more than ``fast`` (beyond
    which a batch is no faster), in the fastest ``precision``; and the default itself at twice
    its learning rate, at its batch and at four times it (where twice is the square-root rule).
    What is kept of each is the moving average of its weights, which was seldom worse and often
    better (docs/decisions.md, 27).

    Muon's matrix products cost the same at any batch, so that at four times the batch an epoch is
    three times as fast at equal quality.  A training of few epochs lacks steps: then ``times`` is
    two, and the default's constant rate comes before Adafactor's cosine, which is better in longer
    trainings.
    """
    plain: dict[str, Any] = {
        "momentum": None,
        "beta1": None,
        "beta2": None,
        "eps": None,
        "warmup": 0.0,
    }
    adamw = {**plain, "optimizer": "adamw", "weight_decay": 1e-2, "schedule": "one_cycle"}
    cosine = {**plain, "schedule": "cosine", "warmup": 0.05}
    big = max(default.batch_size, min(times * default.batch_size, fast))
    ema = default.ema or AVERAGED

    def with_(batch: int = default.batch_size, **changes: Any) -> Recipe:
        changed = {"batch_size": batch, "precision": precision, "ema": ema, **changes}
        made: Recipe = msgspec.structs.replace(default, **changed)
        if "optimizer" not in changes:
            return made
        times = scale(made.optimizer, batch)
        return msgspec.structs.replace(made, lr=made.lr * times)

    second = (
        (with_(lr=2 * default.lr), "default, scaled and averaged"),
        (with_(big, **cosine, optimizer="adafactor", lr=0.025), "initial: adafactor, cosine"),
    )
    return (
        (with_(big, **adamw, lr=3e-3), "initial: adamw, one cycle"),
        *(second if times < _USUAL else second[::-1]),
        (
            with_(big, **cosine, optimizer="muon", lr=3e-3, weight_decay=1e-2),
            "initial: muon, cosine",
        ),
        (with_(**cosine, optimizer="nesterov", lr=0.05, weight_decay=5e-4), "initial: nesterov"),
        (with_(big, lr=2 * default.lr), "default, scaled and averaged"),
        (with_(**adamw, lr=3e-3), "initial: adamw, one cycle"),
    )
