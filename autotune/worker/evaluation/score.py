"""Scores recorded outputs: the artifact's, produced in its own process without this code."""

from pathlib import Path

from autotune.records.job import Score, Scored
from autotune.worker.channel import Channel
from autotune.worker.contract.task import load
from autotune.worker.data import rows
from autotune.worker.evaluation.evaluate import score_outputs


def run(job: Score, root: Path, channel: Channel) -> Scored:
    """Score ``job.outputs`` against the targets of ``job.part``; a large file is then removed.

    Raises:
        ContractError: the user's functions break the contract.
        JobError: ``nan`` where quality is not a finite number.
    """
    path = root / job.outputs
    loaded = load(job.task).remember(root)
    scores = score_outputs(loaded, job.part, rows.load(path), job.seed, every=job.every)
    if path.stat().st_size > rows.KEPT_BYTES:  # gigabytes a candidate would fill the disk
        path.unlink()
    return Scored(scores=scores)
