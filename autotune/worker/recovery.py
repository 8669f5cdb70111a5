"""Recovery training: a pruned model learns again, for a few epochs at a lower learning rate.

Plain task loss, the recipe's optimizer, learning rate 0.3 times the recipe's, cosine to 0.  The
recipe's schedule, clipping, smoothing and averaging are for training from scratch.
"""

import itertools
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch import nn

from autotune.errors import JobError
from autotune.records.plan import Recipe
from autotune.worker.channel import Channel
from autotune.worker.contract import Loaded
from autotune.worker.streams import Stream

if TYPE_CHECKING:
    from autotune.worker.optimizers import Rule

_LR_SHARE = 0.3


def recover(
    model: nn.Module, loaded: Loaded, recipe: Recipe, epochs: int, seed: int, channel: Channel
) -> float:
    """Train ``model`` in place on *train* (or *adapt*); reports each epoch's mean loss.

    Returns the seconds it took.

    Raises:
        JobError: unsupported where there is nothing to train on, nan for such a loss.
    """
    if epochs <= 0:
        return 0.0
    data: Any = loaded.train if loaded.train is not None else loaded.adapt
    if data is None or len(data) == 0:
        raise JobError(
            "unsupported",
            f"recovery_epochs is {epochs}, but the task has no training rows: "
            "define train_data() in the model file, or use recovery_epochs 0",
        )
    from autotune.worker import optimizers, schedules

    started = time.perf_counter()
    torch.manual_seed(seed)
    torch.set_num_threads(max(1, recipe.threads * recipe.ranks))
    slower = msgspec.structs.replace(recipe, lr=recipe.lr * _LR_SHARE)
    rule = optimizers.build(slower, model)
    steps = max(1, epochs * math.ceil(len(data) / recipe.batch_size))
    shares = (schedules.cosine(step, steps) for step in itertools.count())
    model.train()
    for epoch in range(epochs):
        loss = _epoch(
            model,
            loaded,
            _batches(data, recipe.batch_size, seed + epoch),
            recipe,
            (rule, shares),
        )
        if not channel.report(epoch + 1, loss):
            break
    model.eval()
    return time.perf_counter() - started


def _epoch(
    model: nn.Module,
    loaded: Loaded,
    batches: Iterator[list[Any]],
    recipe: Recipe,
    steering: "tuple[Rule, Iterator[float]]",
) -> float:
    """Mean loss of one pass."""
    rule, shares = steering
    total, count = 0.0, 0
    for samples in batches:
        inputs, target = loaded.collate(samples)
        rule.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss = loaded.training_loss(loaded.stepped(model), inputs, target)
        loss.backward()  # type: ignore[no-untyped-call]
        rule.step(next(shares))
        total, count = total + float(loss.detach()) * len(samples), count + len(samples)
    if not math.isfinite(total):
        raise JobError("nan", "recovery training gave a loss that is not a number")
    return total / max(1, count)


def _batches(data: Any, size: int, seed: int) -> Iterator[list[Any]]:
    """Shuffled by seed, or a stream as it comes; a last batch of one row is left out, as batch
    norm cannot take it.
    """
    if isinstance(data, Stream):
        samples = data.samples()
        for start in range(0, len(data) - 1, size):
            yield list(itertools.islice(samples, min(size, len(data) - start)))
        return
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data), generator=generator).tolist()
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        if len(rows) > 1 or len(order) == 1 or size == 1:
            yield [data[row] for row in rows]
