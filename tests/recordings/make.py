"""Record the runs of `tests/test_recordings.py` anew: ``python -m tests.recordings.make``.

Each takes its ``--time``.  Kept are every job beside its result, the report, and the few files of
the workers that the parent reads: the shipped build, and the test rows with its outputs.
"""

import gzip
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from autotune.api import tune
from autotune.bridge.process import ProcessBridge
from autotune.bridge.protocol import OnReport
from autotune.pipeline.pipeline import meter_args
from autotune.records import codec
from autotune.records.budget import Budget, Effort, Limit
from autotune.records.job import A, Built, Job, Result
from autotune.task import Task

HERE = Path(__file__).parent
RUNS = {
    "digits_cnn": (
        Budget(latency=Limit(value=0.6, relative=True), max_drop=0.02),
        Effort(time_s=100),
    ),
    "two_towers": (Budget(), Effort(time_s=90)),
}


class _Recorded(ProcessBridge):
    """Keeps each job beside its result, and at the end a copy of the work folder."""

    def __init__(self, root: Path, kept: Path, **how: Any) -> None:
        super().__init__(root, **how)
        self._work, self._kept = root, kept
        self.lines: list[bytes] = []
        self.builds: dict[str, str] = {}

    def run(self, job: Job[A], *, timeout_s: float, on_report: OnReport | None = None) -> Result[A]:
        result = super().run(job, timeout_s=timeout_s, on_report=on_report)
        if isinstance(result.answer, Built):
            self.builds[result.answer.sha256] = result.answer.artifact
        both = {"job": json.loads(codec.encode(job)), "result": json.loads(codec.encode(result))}
        self.lines.append(json.dumps(both).encode())
        return result

    def close(self) -> None:
        super().close()
        shutil.copytree(self._work, self._kept)


def record(name: str) -> None:
    """Run one example and write its folder under ``tests/recordings/``."""
    budget, effort = RUNS[name]
    target, bridges = HERE / name, []
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(scratch) / "work"

        def make(work: Path) -> _Recorded:
            bridges.append(_Recorded(work, kept, meter=meter_args(effort)))
            return bridges[0]

        task = Task.from_file(HERE.parents[1] / "examples" / f"{name}.py")
        report, folder = tune(task, budget, effort, out=Path(scratch) / "run", bridge=make)
        assert report.artifact is not None
        built = bridges[0].builds[report.artifact.sha256]
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(kept / built, target / "work" / built)
        for part in ("data/test.npz", f"outputs/{Path(built).name}-test.npz"):
            (target / "work" / part).parent.mkdir(exist_ok=True)
            shutil.copy(kept / part, target / "work" / part)
        _compress(target / "jobs.jsonl.gz", b"\n".join(bridges[0].lines) + b"\n")
        _compress(target / "report.json.gz", (folder / "report.json").read_bytes())


def _compress(path: Path, data: bytes) -> None:
    with gzip.GzipFile(path, "wb", 9, mtime=0) as file:
        file.write(data)


if __name__ == "__main__":
    for run in RUNS:
        record(run)
