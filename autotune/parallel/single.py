"""One process, one rank: the body runs in this process."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.errors import JobError
from autotune.records.job import Answer, Context, Throughput, Train

if TYPE_CHECKING:
    from torch import nn

    from autotune.parallel import Body, Reporter

RANKS = (1,)


class Solo:
    """A group of one: every collective is the identity."""

    rank = 0
    world = 1

    def __init__(self, device: str, started_s: float) -> None:
        self.device = device
        self.started_s = started_s

    def wrap(self, model: "nn.Module", *, find_unused: bool = False) -> Any:
        return model

    def unwrap(self, model: Any) -> "nn.Module":
        module: nn.Module = model
        return module

    def mean(self, total: float, count: float) -> float:
        return total / count

    def largest(self, value: float) -> float:
        return value

    def share(self, value: float) -> float:
        return value

    def agree(self, go: bool) -> bool:
        return go

    def close(self) -> None:
        pass


def unavailable(context: Context) -> str | None:
    """Always available."""
    return None


def launch(job: Train | Throughput, root: Path, channel: "Reporter", body: "Body") -> Answer:
    """Run the body in this process with ``recipe.threads`` threads.

    Raises:
        JobError: the recipe asks for more than one rank.
    """
    started = time.monotonic()
    if job.recipe.ranks != 1:
        raise JobError(
            "unsupported",
            f"parallel 'single' is one rank, the recipe asks for {job.recipe.ranks}; "
            "use parallel 'ddp'",
        )
    import torch

    torch.set_num_threads(job.recipe.threads)
    cuda = job.device != "cpu" and torch.cuda.is_available()
    group = Solo("cuda:0" if cuda else "cpu", started)
    try:
        return body(job, root, channel, group)
    finally:
        group.close()
