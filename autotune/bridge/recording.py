"""The recording of a run's jobs, from which an interrupted run is resumed (``--resume``).

`Recorder` writes it; `ReplayBridge` answers from it until it ends, then hands jobs to real workers.
One line of JSON per result (`Recorded`), in the order of the jobs.
"""

import json
import os
from collections import defaultdict, deque
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from autotune.bridge.protocol import Bridge, OnReport
from autotune.errors import WorkerError
from autotune.records import codec
from autotune.records.base import Record
from autotune.records.job import A, AnyResult, Job, Result


def key(job: Job[Any]) -> str:
    """Identity of a job across machines and folders."""
    data = json.loads(codec.encode(job))
    if isinstance(data.get("task"), dict):
        data["task"]["path"] = Path(data["task"]["path"]).name
    return sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:24]


class Recorded(Record, frozen=True, kw_only=True):
    """One line of a recording."""

    key: str
    result: AnyResult


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
        self._answers: dict[str, deque[AnyResult]] = defaultdict(deque)
        for item in recording:
            self._answers[item.key].append(item.result)
        self._make_live = live
        self._live: Bridge | None = None
        self._now = 0.0
        self._preload: list[tuple[str, ...]] = []
        self.asked: list[Job[Any]] = []
        self.replayed = 0

    def run(self, job: Job[A], *, timeout_s: float, on_report: OnReport | None = None) -> Result[A]:
        self.asked.append(job)
        answers = self._answers.get(key(job))
        if answers:
            self.replayed += 1
            result = cast("Result[A]", answers.popleft())
            for step, value in result.reports:
                if on_report is not None and not on_report(step, value):
                    break
            self._now = max(self._now, result.finished_s)
            return result
        return self._live_for(job).run(job, timeout_s=timeout_s, on_report=on_report)

    def _live_for(self, job: Job[Any]) -> Bridge:
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

    def run(self, job: Job[A], *, timeout_s: float, on_report: OnReport | None = None) -> Result[A]:
        result = self._inner.run(job, timeout_s=timeout_s, on_report=on_report)
        self._file.write(
            codec.encode(Recorded(key=key(job), result=cast("AnyResult", result))) + b"\n"
        )
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
