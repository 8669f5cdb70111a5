"""What every training needs, ours and the user's own: a judge, a meter, a place for the weights."""

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

from autotune.errors import ContractError
from autotune.parallel import Group
from autotune.records.measurement import EnergyWindow
from autotune.worker.channel import Channel
from autotune.worker.contract.task import LoadedTask
from autotune.worker.evaluation import evaluate


class Look(NamedTuple):
    """The weights that an evaluation saw, and what it found."""

    epoch: float
    quality: float
    loss: float
    weights: dict[str, Tensor]
    train_loss: float | None = None


_BETWEEN = 1e-4
_RISE, _FALL, _BY_HEART = 0.2, 0.3, 2
"""The loss on *validation* up by this share since the best look, that of training down by this one,
in so many looks one after the other: the rows are learnt by heart, and no schedule mends that.
"""


class Evaluator:
    """Evaluates on *validation*, on rank 0 alone; every rank hears the decision.

    With ``keeps`` it holds on to the weights of the best look: a model that begins to learn its
    rows by heart is not what is shipped.  A later look is the better one unless neither its
    quality nor its loss is: either alone may err on few rows.
    """

    def __init__(
        self,
        loaded: LoadedTask,
        model: nn.Module,
        group: Group,
        channel: Channel,
        *,
        keeps: bool = False,
    ) -> None:
        self._loaded, self.model = loaded, model
        self._group, self._channel = group, channel
        self._keeps = keeps
        self.best: Look | None = None
        self._by_heart = 0
        self.losses: list[float] = []
        self.qualities: list[float] = []

    def state(self) -> dict[str, Any] | None:
        """What `restore` needs."""
        if self.best is None:
            return None
        return {"best": self.best._asdict(), "by_heart": self._by_heart}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on from `state`."""
        if state is not None:
            self.best, self._by_heart = Look(**state["best"]), int(state["by_heart"])

    def settle(self) -> None:
        """The model is what the best look saw; it is not trained any more."""
        if self.best is not None:
            self.model.load_state_dict(self.best.weights)

    def report(self, epoch: float, train_losses: Sequence[float] = ()) -> bool:
        """Evaluate and report; whether to go on.  ``train_losses`` are the epochs' so far."""
        self.look(epoch, train_losses)
        go = self._group.rank != 0 or self._channel.report(epoch, self._standing())
        return self._group.agree(go)

    def _standing(self) -> float:
        """What trainings are compared by on their way, the least being the best: the share that is
        wrong, where the metric is such a rate (with the loss between equal ones), else the loss,
        of which a row that is badly wrong may be most.
        """
        loss, quality = self.losses[-1], self.qualities[-1]
        if not self._loaded.info.rate:
            return loss
        wrong = 1.0 - quality if self._loaded.higher_is_better else quality
        return wrong + _BETWEEN * math.tanh(loss)

    def reached(self, quality: float | None) -> bool:
        """Whether the last evaluation was as good as ``quality``, on every rank."""
        if quality is None:
            return False
        better = 1.0 if self._loaded.higher_is_better else -1.0
        found = bool(self.qualities) and better * (self.qualities[-1] - quality) >= 0
        return self._group.agree(found)

    def overfits(self) -> bool:
        """Whether more training only learns the rows by heart, on every rank."""
        return self._group.agree(self._by_heart >= _BY_HEART)

    def look(self, epoch: float = 0.0, train_losses: Sequence[float] = ()) -> None:
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
        if self._keeps and self._better(scores.quality, loss):
            weights = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
            last = train_losses[-1] if train_losses else None
            self.best, self._by_heart = Look(epoch, scores.quality, loss, weights, last), 0
        elif self._keeps:
            self._by_heart = self._by_heart + 1 if self._worse(loss, train_losses) else 0

    def _worse(self, loss: float, train_losses: Sequence[float]) -> bool:
        """Whether this loss has risen since the best look, and that of training fallen."""
        best = self.best
        if best is None or best.train_loss is None or not train_losses:
            return False
        risen = loss - best.loss > _RISE * abs(best.loss)
        return risen and best.train_loss - train_losses[-1] > _FALL * abs(best.train_loss)

    def _better(self, quality: float, loss: float) -> bool:
        best = self.best
        if best is None or loss < best.loss:
            return True
        return quality > best.quality if self._loaded.higher_is_better else quality < best.quality


class Meter:
    """One energy window, opened at once; nothing where there is no meter."""

    def __init__(self, path: str | None, stack: contextlib.ExitStack) -> None:
        self._client = None
        if path is not None:
            from autotune.worker.energy.meter_client import MeterClient

            self._client = stack.enter_context(MeterClient(path))
            self._token = self._client.open()

    def close(self) -> EnergyWindow | None:
        return None if self._client is None else self._client.close(self._token)


def seed_all(seed: int) -> None:
    """Seed torch, NumPy and random."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def peak_memory_bytes() -> int:
    """The largest resident size that this process has had."""
    try:
        status = Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def rows_of(loaded: LoadedTask) -> Any:
    """*train*, or *calibration* where there is none.

    Raises:
        ContractError: there is neither.
    """
    rows = loaded.calibration if loaded.train is None else loaded.train
    if rows is None:
        raise ContractError(
            f"{loaded.info.name} has no training data: define train_data(), or set "
            "pretrained = True to keep the weights as they are"
        )
    return rows


def lay_out(model: nn.Module, form: torch.memory_format) -> None:
    """How weights of four dimensions lie in memory, and so what convolutions make of images."""
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
