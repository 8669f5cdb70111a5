"""What every training needs, ours and the user's own: validation, energy, a file of weights."""

import contextlib
import hashlib
import math
import random
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from autotune.parallel import Group
from autotune.records.measurement import EnergyWindow
from autotune.worker.channel import Channel
from autotune.worker.contract import LoadedTask
from autotune.worker.evaluation import evaluate
from autotune.worker.host import linux

_LOSS_WEIGHT = 1e-4  # of the loss between trials of equal error rate
# Overfitting: in this many consecutive validations the validation loss is up by this share
# since the best one while the training loss is down by that share.  No schedule mends that.
_OVERFIT_VALIDATIONS, _VALIDATION_RISE, _TRAINING_FALL = 2, 0.2, 0.3


class Best(NamedTuple):
    """The best validation so far, and the weights that it saw."""

    epoch: float
    quality: float
    loss: float
    weights: dict[str, Tensor]
    train_loss: float | None = None


class Validator:
    """Evaluates a training on *validation*, on rank 0 alone; every rank gets the decision.

    Args:
        keep_best: hold on to the weights of the best validation, which are shipped, so that later
            overfitting does no harm.  A later validation is the better one unless neither its
            quality nor its loss is: on few rows either alone may err.
    """

    def __init__(
        self,
        loaded: LoadedTask,
        model: nn.Module,
        group: Group,
        channel: Channel,
        *,
        keep_best: bool = False,
    ) -> None:
        self._loaded, self.model = loaded, model
        self._group, self._channel = group, channel
        self._keep_best = keep_best
        self.best: Best | None = None
        self._overfit = 0  # validations in a row
        self.losses: list[float] = []
        self.qualities: list[float] = []

    def state(self) -> dict[str, Any] | None:
        """What `restore` needs."""
        if self.best is None:
            return None
        return {"best": self.best._asdict(), "overfit": self._overfit}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on from `state`."""
        if state is not None:
            self.best, self._overfit = Best(**state["best"]), int(state["overfit"])

    def load_best(self) -> None:
        """Give the model the weights of the best validation; it is not trained any more."""
        if self.best is not None:
            self.model.load_state_dict(self.best.weights)

    def report(self, epoch: float, train_losses: Sequence[float] = ()) -> bool:
        """Validate and report; whether to go on.  ``train_losses`` are the epochs' so far."""
        self.validate(epoch, train_losses)
        go = self._group.rank != 0 or self._channel.report(epoch, self._intermediate_value())
        return self._group.agree(go)

    def _intermediate_value(self) -> float:
        """What trials are compared by before they end, less being better: the error rate where
        the metric is a rate (with the loss between equal ones), else the loss, most of which may
        come from one badly wrong row.
        """
        loss, quality = self.losses[-1], self.qualities[-1]
        if not self._loaded.info.rate:
            return loss
        wrong = 1.0 - quality if self._loaded.higher_is_better else quality
        return wrong + _LOSS_WEIGHT * math.tanh(loss)

    def reached(self, quality: float | None) -> bool:
        """Whether the last validation was as good as ``quality``, on every rank."""
        if quality is None:
            return False
        better = 1.0 if self._loaded.higher_is_better else -1.0
        found = bool(self.qualities) and better * (self.qualities[-1] - quality) >= 0
        return self._group.agree(found)

    def overfits(self) -> bool:
        """Whether more training would only overfit, on every rank."""
        return self._group.agree(self._overfit >= _OVERFIT_VALIDATIONS)

    def validate(self, epoch: float = 0.0, train_losses: Sequence[float] = ()) -> None:
        """Evaluate the model as it is after ``epoch``.

        Raises:
            JobError: ``nan``: the validation loss or the quality is not finite.
        """
        if self._group.rank != 0:
            return
        scores = evaluate.evaluate(self.model, self._loaded, "validation")
        loss = scores.loss
        if loss is None:  # the metric stands in, turned so that less is better
            loss = 1.0 - scores.quality if self._loaded.higher_is_better else scores.quality
        self.losses.append(loss)
        self.qualities.append(scores.quality)
        if self._keep_best and self._better(scores.quality, loss):
            weights = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
            last = train_losses[-1] if train_losses else None
            self.best, self._overfit = Best(epoch, scores.quality, loss, weights, last), 0
        elif self._keep_best:
            self._overfit = self._overfit + 1 if self._overfits(loss, train_losses) else 0

    def _overfits(self, loss: float, train_losses: Sequence[float]) -> bool:
        """Whether this loss has risen since the best validation, and that of training fallen."""
        best = self.best
        if best is None or best.train_loss is None or not train_losses:
            return False
        risen = loss - best.loss > _VALIDATION_RISE * abs(best.loss)
        return risen and best.train_loss - train_losses[-1] > _TRAINING_FALL * abs(best.train_loss)

    def _better(self, quality: float, loss: float) -> bool:
        best = self.best
        if best is None or loss < best.loss:
            return True
        return quality > best.quality if self._loaded.higher_is_better else quality < best.quality


class EnergyMonitor:
    """One energy window, opened at once; without a meter process there is nothing to read.

    Args:
        path: the socket of the meter process.
        stack: closes the connection.
    """

    def __init__(self, path: str | None, stack: contextlib.ExitStack) -> None:
        self._client = None
        if path is not None:
            from autotune.worker.energy import MeterClient

            self._client = stack.enter_context(MeterClient(path))
            self._token = self._client.open()

    def close(self) -> EnergyWindow | None:
        """The window's energy in joules."""
        return None if self._client is None else self._client.close(self._token)


def seed_all(seed: int) -> None:
    """Seed torch, NumPy and random."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def peak_memory_bytes() -> int:
    """The largest resident size that this process has had."""
    return linux.peak_memory_bytes() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def lay_out(model: nn.Module, form: torch.memory_format) -> None:
    """The memory format of the model's 4-D weights, which that of activations follows."""
    model.to(memory_format=form)  # type: ignore[call-overload]  # torch declares it for tensors


def save(model: nn.Module, root: Path, out: str | None) -> str | None:
    """Write the state dict (tied weights once, as safetensors does) and hash the file."""
    if out is None:
        return None
    from safetensors.torch import save_model

    path = root / out
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".part")
    lay_out(model, torch.contiguous_format)
    save_model(model.cpu(), str(scratch))
    scratch.replace(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
