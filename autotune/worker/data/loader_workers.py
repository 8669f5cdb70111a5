"""Batches loaded by worker processes, where a dataset is slow; training survives their death.

    chunks of row numbers -> DataLoader workers -> (input, target), in order
                             a worker dies -> the rest is loaded in this process

Random augmentation inside a dataset follows each worker's own seed: it is repeatable, but differs
between numbers of workers.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch import Generator
from torch.utils.data import DataLoader, Dataset

_DEATH = ("DataLoader worker", "DataLoader timed out")


def _is_death(error: Exception) -> bool:
    """Whether a worker died; what a dataset raises in one begins with "Caught"."""
    text = str(error)
    if isinstance(error, RuntimeError):
        return any(sign in text for sign in _DEATH) and not text.startswith("Caught")
    return not text.startswith("Caught")


def _quietly(loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader's iterator.  Torch's handler of SIGCHLD would raise wherever this process is when
    a worker ends; without it the death is found when the next batch is asked for.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    made = iter(loader)
    signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    return made


def loaded(
    dataset: Dataset[Any],
    collate: Callable[[list[Any]], tuple[Any, Any]],
    chunks: list[list[int]],
    *,
    workers: int,
    seed: int,
    pinned: bool = False,
) -> Iterator[tuple[Any, Any]]:
    """The collated batch of each chunk of row numbers, in order."""
    loader = DataLoader(
        dataset,
        batch_sampler=chunks,
        collate_fn=collate,
        num_workers=workers,
        generator=Generator().manual_seed(seed),
        pin_memory=pinned,
    )
    batches = _quietly(loader)
    for number, _ in enumerate(chunks):
        try:
            batch = next(batches)
        except (RuntimeError, ConnectionError, EOFError) as error:
            if not _is_death(error):
                raise
            print(f"{error}; batches are loaded without workers from here on", file=sys.stderr)
            for chunk in chunks[number:]:
                yield collate([dataset[row] for row in chunk])
            return
        yield batch
