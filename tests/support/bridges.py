"""A function in place of the workers."""

from collections.abc import Callable
from typing import Any

import msgspec

from autotune.bridge.protocol import OnReport
from autotune.records.job import A, Job, Result


class FunctionBridge:
    """A function in place of the workers: for tests, and for searches on tables."""

    def __init__(self, answer: Callable[[Any], Result[Any]]) -> None:
        self._answer = answer
        self._now = 0.0
        self.asked: list[Job[Any]] = []

    def run(self, job: Job[A], *, timeout_s: float, on_report: OnReport | None = None) -> Result[A]:
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
