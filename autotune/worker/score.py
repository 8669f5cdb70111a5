"""Scores recorded outputs: the artifact's, produced in its own process without this code."""

from pathlib import Path

from autotune.records.job import Score, Scored
from autotune.worker import rows
from autotune.worker.channel import Channel
from autotune.worker.contract import load
from autotune.worker.evaluate import score_outputs


def run(job: Score, root: Path, channel: Channel) -> Scored:
    """Score ``job.outputs`` against the targets of ``job.part``.

    Raises:
        ContractError: the user's functions break the contract.
        JobError: ``nan`` where quality is not a finite number.
    """
    outputs = rows.load(root / job.outputs)
    loaded = load(job.task).remember(root)
    return Scored(scores=score_outputs(loaded, job.part, outputs, job.seed))
