"""A training's whole state as a file: a training goes on from it as if never interrupted.

    weights/trial-3.state         rank 0: model, optimizers, step, moving average, counts, the
                                  weights of the best validation
    weights/trial-3.state.rank1   further ranks: the states of the random generators, and the step

The learning rate follows from the step and the horizon, which are kept, so a schedule has no
state of its own.  Files are written aside and moved into place; they hold tensors and plain
values alone, and are read as such (``weights_only=True``).
"""

import random
import time
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autotune.parallel import Group
from autotune.records import codec
from autotune.records.job import Train
from autotune.worker.training.evaluation import Validator
from autotune.worker.training.loop import Loop


def drop(root: Path, names: Iterable[str]) -> None:
    """Delete the states that are not needed any more."""
    for name in names:
        for path in (root / name).parent.glob(Path(name).name + "*"):
            path.unlink(missing_ok=True)


class Checkpointer:
    """Saves one training's state as its job says, and restores it at once where one was saved."""

    def __init__(
        self, loop: Loop, job: Train, root: Path, group: Group, validator: Validator
    ) -> None:
        self._loop, self._group, self._validator = loop, group, validator
        same = Train(task=job.task, recipe=job.recipe, epochs=job.epochs, seed=job.seed)
        self._identity = sha256(codec.encode(same)).hexdigest()
        self._path = None if job.checkpoint is None else root / job.checkpoint
        self._save_s = job.save_s
        self._saved_s = time.monotonic()
        self.size_bytes = 0
        if self._path is not None:
            self._restore(self._path)

    def train(self, epochs: float) -> None:
        """Train until ``epochs`` are done; saves at the first epoch's end after ``save_s``."""
        loop = self._loop
        if self._path is None or self._save_s is None:
            loop.to(epochs)
            return
        while loop.done < epochs and not loop.late:
            loop.to(min(epochs, loop.whole + 1))
            if self._group.agree(time.monotonic() - self._saved_s >= self._save_s):
                self.save()

    def save(self) -> None:
        """Write this rank's part, where the job asks for any."""
        if self._path is None:
            return
        rank, path = self._group.rank, self._path
        state: dict[str, Any] = {"random": random_state()}
        if rank == 0:
            state |= {"validator": self._validator.state(), "identity": self._identity}
            state |= self._loop.state()
        else:
            state["steps"], path = self._loop.steps, _of_rank(path, rank)
        self.size_bytes = _write(state, path)
        self._saved_s = time.monotonic()

    def _restore(self, path: Path) -> None:
        """Go on from the state, where there is one of this very training."""
        if not self._group.agree(path.is_file()):
            return
        state = torch.load(path, weights_only=True, map_location=self._group.device)
        if state["identity"] != self._identity:  # every rank reads the same file
            return
        own = state
        if self._group.rank != 0:
            file = _of_rank(path, self._group.rank)
            own = torch.load(file, weights_only=True) if file.is_file() else {}
            if own.get("steps") != state["counts"]["steps"]:  # killed between two ranks' writing
                own = {"random": random_state()}
        self._loop.restore(state)
        set_random_state(own["random"])
        self._validator.restore(state["validator"])


def random_state() -> dict[str, Any]:
    """The state of every source of random numbers that a training may use."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, following = random.getstate()
    found: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position],
        "gauss": [has_gauss, gauss],
        "python": [version, list(internal), following],
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def set_random_state(state: dict[str, Any]) -> None:
    """Back to a `random_state`."""
    torch.set_rng_state(state["torch"].cpu())
    name, keys, position = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, *state["gauss"]))
    version, internal, following = state["python"]
    random.setstate((version, tuple(internal), following))
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu())


def _of_rank(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.name}.rank{rank}")


def _write(state: dict[str, Any], path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".part")
    torch.save(state, scratch)
    size = scratch.stat().st_size
    scratch.replace(path)
    return size
