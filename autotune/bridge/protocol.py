"""The only door to the workers: ``run(Job) -> Result``.

    ProcessBridge   server (fork per job), measuring interpreters, meter process
    ReplayBridge    answers from a recording; misses go to another bridge or are an error
    Recorder        wraps one and appends every result to a file

The run's clock, `now`, moves only when a job ends and is part of the recording, so that
every decision made from it is the same in a replay.  This is also how an interrupted run
is resumed: its recording is replayed, then the work goes on live.

Failures of a job are data (`Result.failure`); only a bridge that cannot work at all raises.
"""

import json
import os
from collections import defaultdict, deque
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import msgspec

from autotune.errors import WorkerError
from autotune.records import codec
from autotune.records.base import Record
from autotune.records.job import Job, Result

OnReport = Callable[[float, float], bool]


class Bridge(Protocol):
    """What the story sees of the workers."""

    def run(self, job: Job, *, timeout_s: float, on_report: OnReport | None = None) -> Result:
        """Do one job.  ``on_report(step, value)`` answers whether to go on."""
        ...

    def now(self) -> float:
        """Seconds of the run's clock at the end of the last job; while a report is answered, by
        then (not when it is replayed: what follows from the answer is in the job's result).
        """
        ...

    def preload(self, names: tuple[str, ...]) -> None:
        """Import these packages once, so that later jobs need not."""
        ...

    def close(self) -> None: ...


def key(job: Job) -> str:
    """Identity of a job across machines and folders."""
    data = json.loads(codec.encode(job))
    if isinstance(data.get("task"), dict):
        data["task"]["path"] = Path(data["task"]["path"]).name
    return sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:24]


class Recorded(Record, frozen=True, kw_only=True):
    """One line of a recording."""

    key: str
    result: Result


def load_recording(path: Path) -> list[Recorded]:
    """Every whole line; a torn last line (killed while writing) is dropped and cut off."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) != len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return [codec.decode(line, Recorded, what=path.name) for line in whole.splitlines()]


class ReplayBridge:
    """Answers each job from a recording, in order of appearance of equal jobs.

    Raises:
        WorkerError: a job that was not recorded, where there is no ``live`` bridge.
    """

    def __init__(
        self, recording: list[Recorded], live: "Callable[[float], Bridge] | None" = None
    ) -> None:
        self._answers: dict[str, deque[Result]] = defaultdict(deque)
        for item in recording:
            self._answers[item.key].append(item.result)
        self._make_live = live
        self._live: Bridge | None = None
        self._now = 0.0
        self._preload: list[tuple[str, ...]] = []
        self.asked: list[Job] = []
        self.replayed = 0

    def run(self, job: Job, *, timeout_s: float, on_report: OnReport | None = None) -> Result:
        self.asked.append(job)
        answers = self._answers.get(key(job))
        if answers:
            self.replayed += 1
            result = answers.popleft()
            for step, value in result.reports:
                if on_report is not None and not on_report(step, value):
                    break
            self._now = max(self._now, result.finished_s)
            return result
        return self._alive(job).run(job, timeout_s=timeout_s, on_report=on_report)

    def _alive(self, job: Job) -> Bridge:
        if self._live is None:
            if self._make_live is None:
                raise WorkerError(f"the recording holds no answer for {type(job).__name__} {job}")
            self._live = self._make_live(self._now)
            for names in self._preload:
                self._live.preload(names)
        return self._live

    def now(self) -> float:
        return max(self._now, self._live.now() if self._live else 0.0)

    def preload(self, names: tuple[str, ...]) -> None:
        if self._live is not None:
            self._live.preload(names)
        else:
            self._preload.append(names)

    def close(self) -> None:
        if self._live is not None:
            self._live.close()


class Recorder:
    """Appends every result to ``path``, each line on disk before the next job starts."""

    def __init__(self, inner: Bridge, path: Path) -> None:
        self._inner = inner
        self._file = path.open("ab")

    def run(self, job: Job, *, timeout_s: float, on_report: OnReport | None = None) -> Result:
        result = self._inner.run(job, timeout_s=timeout_s, on_report=on_report)
        self._file.write(codec.encode(Recorded(key=key(job), result=result)) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        return result

    def now(self) -> float:
        return self._inner.now()

    def preload(self, names: tuple[str, ...]) -> None:
        self._inner.preload(names)

    def close(self) -> None:
        self._inner.close()
        self._file.close()


class FunctionBridge:
    """A function in place of the workers: for tests, and for searches on tables."""

    def __init__(self, answer: Callable[[Job], Result]) -> None:
        self._answer = answer
        self._now = 0.0
        self.asked: list[Job] = []

    def run(self, job: Job, *, timeout_s: float, on_report: OnReport | None = None) -> Result:
        self.asked.append(job)
        result = self._answer(job)
        seen = []
        for step, value in result.reports:
            seen.append((step, value))
            if on_report is not None and not on_report(step, value):
                break
        self._now += result.wall_s
        return msgspec.structs.replace(result, finished_s=self._now, reports=tuple(seen))

    def now(self) -> float:
        return self._now

    def preload(self, names: tuple[str, ...]) -> None:
        del names

    def close(self) -> None:
        return None
