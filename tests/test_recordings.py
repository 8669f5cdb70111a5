"""Recorded runs replay to the same plans, verdicts and figures.

Each job is recorded beside its result (``python -m tests.recordings.make`` records anew).  After a
change that moves or renames, what has another name since then stands in `RENAMED` and `VALUES`;
nothing else may differ but prose and what `NOT_COMPARED` names.
"""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from autotune.api import tune
from autotune.bridge.recording import Recorded, ReplayBridge, key
from autotune.records import codec
from autotune.records import job as jobs
from autotune.records.base import Record
from autotune.records.budget import Budget, Effort
from autotune.task import Task

FOLDER = Path(__file__).parent / "recordings"
RENAMED: dict[str, str] = {}
"""Fields, and the names of jobs and answers, that have another name now."""
VALUES: dict[str, str] = {}
"""Parts of strings that have another name now: parts of the data, and files of them."""
PROSE = {"text", "messages", "note", "notes", "why", "warnings", "reason", "source", "remedy"}
NOT_COMPARED = {"created_utc", "software", "overhead_s", "overhead_median_s"}


class _Line(Record, frozen=True, kw_only=True):
    job: jobs.AnyJob
    result: jobs.AnyResult


def _renamed(value: Any) -> Any:
    if isinstance(value, dict):
        return {RENAMED.get(k, k): _renamed(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_renamed(v) for v in value]
    if isinstance(value, str):
        if value in RENAMED:
            return RENAMED[value]
        for old, new in VALUES.items():
            value = value.replace(old, new)
    return value


def _compared(value: Any) -> Any:
    if isinstance(value, dict):
        left = {k: v for k, v in value.items() if k not in PROSE | NOT_COMPARED}
        return {k: _compared(v) for k, v in left.items()}
    if isinstance(value, float):  # `statistics.stdev` rounds the last digit otherwise than before
        return float(f"{value:.12g}")
    return [_compared(v) for v in value] if isinstance(value, list) else value


def _lines(name: str) -> list[_Line]:
    raw = gzip.decompress((FOLDER / name / "jobs.jsonl.gz").read_bytes())
    found = [json.dumps(_renamed(json.loads(line))).encode() for line in raw.splitlines()]
    return [codec.decode(line, _Line, what=name) for line in found]


def _work_files(name: str, work: Path) -> None:
    """The few files of the workers that the parent reads: what is shipped and what is recorded."""
    for file in (FOLDER / name / "work").rglob("*"):
        if file.is_file():
            target = work / str(_renamed(str(file.relative_to(FOLDER / name / "work"))))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)


@pytest.mark.parametrize("name", ["digits_cnn", "two_towers"])
def test_a_recording_replays_to_its_report(name: str, examples: Path, tmp_path: Path) -> None:
    lines = _lines(name)
    old = _renamed(json.loads(gzip.decompress((FOLDER / name / "report.json.gz").read_bytes())))
    bridges: list[ReplayBridge] = []

    def replay(work: Path) -> ReplayBridge:
        _work_files(name, work)
        bridges.append(ReplayBridge([Recorded(key=key(x.job), result=x.result) for x in lines]))
        return bridges[0]

    budget = codec.decode(json.dumps(old["budget"]).encode(), Budget)
    effort = codec.decode(json.dumps(old["effort"]).encode(), Effort)
    task = Task.from_file(examples / f"{name}.py")
    report, folder = tune(task, budget, effort, out=tmp_path / "run", bridge=replay)
    assert bridges[0].replayed == len(lines)
    new = json.loads((folder / "report.json").read_bytes())
    assert report.exit_code == old["exit_code"]
    for part in sorted((set(old) | set(new)) - PROSE - NOT_COMPARED):
        assert _compared(new.get(part)) == _compared(old.get(part)), part
