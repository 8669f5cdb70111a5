"""Layouts of training over processes: one file each, and its file name is its name.

    worker.training.train --launch--> single: body(job, root, channel, one-rank group)
                               --launch--> ddp:    N ranks, each body(job, root, channel, its group)

A plug-in has `RANKS` or `ranks(context)`, `unavailable` and `launch` (see `Plugin`); a file dropped
into this folder joins the survey's options and the conformance suite by itself.  Nothing here
imports the worker: the training loop comes in as `body` and sees the ranks only through a `Group`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from autotune.records.base import Record
from autotune.records.job import Answer, Context, Throughput, Train

if TYPE_CHECKING:
    from torch import nn


class Reporter(Protocol):
    """Where a job reports to: each report is answered with go (True) or stop (False)."""

    def report(self, step: float, value: float) -> bool: ...


class Group(Protocol):
    """The ranks that train together, as one of them sees it.

    Every method with "over ranks" or "everywhere" in its line is collective: all ranks must
    call it, in the same order.  ``device`` is torch's name of this rank's device;
    ``started_s`` is ``time.monotonic()`` when the job was taken up, before any process was
    started for it.
    """

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    @property
    def device(self) -> str: ...

    @property
    def started_s(self) -> float: ...

    def wrap(self, model: "nn.Module", *, find_unused: bool = False) -> Any:
        """The module to call in training: gradients are means over ranks after backward.

        ``find_unused``: some parameters take no part in the loss.
        """
        ...

    def unwrap(self, model: Any) -> "nn.Module":
        """The user's own module back from `wrap`."""
        ...

    def mean(self, total: float, count: float) -> float:
        """``sum of total / sum of count`` over ranks."""
        ...

    def largest(self, value: float) -> float:
        """The largest over ranks."""
        ...

    def share(self, value: float) -> float:
        """Rank 0's value everywhere."""
        ...

    def agree(self, go: bool) -> bool:
        """Rank 0's decision everywhere."""
        ...

    def close(self) -> None:
        """Leave the group; nothing may be called afterwards."""
        ...


class Body(Protocol):
    """What one rank does.  A module-level function: another interpreter imports it by name.

    The answer of rank 0 is the answer of the job; the other ranks' channels do nothing.
    """

    def __call__(self, job: Any, root: Path, channel: Reporter, group: Group, /) -> Answer: ...


class Plugin(Protocol):
    """What each file of this folder is.

    ``RANKS``, or a function ``ranks(context)``, gives the numbers of processes to be measured.
    """

    def unavailable(self, context: Context) -> str | None:
        """Why this machine or task cannot use it, and what would help; None if it can."""
        ...

    def launch(self, job: Train | Throughput, root: Path, channel: Reporter, body: Body) -> Answer:
        """Run ``body`` on ``job.recipe.ranks`` ranks and return rank 0's answer.

        Raises:
            JobError: a rank failed; ``kind`` says how.  No process is left behind.
            ContractError: the user's model broke the contract in a rank.
        """
        ...


class Order(Record, frozen=True, kw_only=True):
    """What a launcher hands to the interpreters of its ranks; ``body`` is ``module:function``."""

    job: Train | Throughput
    body: str
    started_s: float


class Reply(Record, frozen=True, kw_only=True):
    """Rank 0's answer on its way back."""

    answer: Answer
