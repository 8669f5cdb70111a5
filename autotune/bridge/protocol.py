"""The only door to the workers: a `Job` in, its `Result` out.

    process.ProcessBridge   server (one fork per job), measuring interpreters, meter process
    recording.ReplayBridge  answers from a recording; what is not in it goes to another bridge
    recording.Recorder      wraps a bridge and appends every result to a file

The run's clock, `Bridge.now`, moves only when a job ends and is part of the recording, so that
every decision made from it is the same in a replay.  This is also how an interrupted run
is resumed: its recording is replayed, then the work goes on live.

Failures of a job are data (`Result.failure`); only a bridge that cannot work at all raises.
"""

from collections.abc import Callable
from typing import Protocol

from autotune.records.job import A, Job, Result

OnReport = Callable[[float, float], bool]
"""Called with a step and its value; returns whether the job goes on."""


class Bridge(Protocol):
    """What a run sees of the workers."""

    def run(self, job: Job[A], *, timeout_s: float, on_report: OnReport | None = None) -> Result[A]:
        """Do one job, within ``timeout_s``."""
        ...

    def now(self) -> float:
        """Seconds of the run's clock, at the end of the last job.

        While ``on_report`` runs it is the present time, except in a replay: only what the job's
        result says may follow from it.
        """
        ...

    def preload(self, names: tuple[str, ...]) -> None:
        """Import these packages once, so that later jobs need not."""
        ...

    def close(self) -> None: ...
