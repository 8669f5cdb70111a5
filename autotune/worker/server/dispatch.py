"""Which handler does which job, and what a raised exception means."""

import traceback
from importlib import import_module
from pathlib import Path

from autotune.errors import ContractError, JobError
from autotune.records import job as jobs
from autotune.records.report import Failure
from autotune.worker.channel import Channel

_HANDLERS: dict[type, str] = {
    jobs.Inspect: "survey.inspect:run",
    jobs.Outline: "survey.meta_inspect:run",
    jobs.Probe: "machine.profile:run",
    jobs.Replay: "opbench.op_benchmark:run",
    jobs.Footprint: "training.footprint:run",
    jobs.Menu: "survey.options:run",
    jobs.Train: "training.train:run",
    jobs.Throughput: "training.train:throughput",
    jobs.Build: "build.build:run",
    jobs.Score: "evaluation.score:run",
}


def run(job: jobs.Job, root: Path, channel: Channel) -> jobs.Answer:
    """Do one job in this process."""
    module, _, function = _HANDLERS[type(job)].partition(":")
    handler = getattr(import_module(f"autotune.worker.{module}"), function)
    answer: jobs.Answer = handler(job, root, channel)
    return answer


def failure(error: BaseException) -> Failure:
    """What went wrong, as data."""
    text = f"{type(error).__name__}: {error}".strip().removesuffix(":")
    if isinstance(error, JobError):
        return Failure(kind=error.kind, message=str(error), least=error.least, never=error.never)
    if isinstance(error, ContractError):
        return Failure(kind="contract", message=str(error))
    if isinstance(error, SystemExit):
        return Failure(kind="exit", message=f"the model's code called exit({error.code!r})")
    if _out_of_memory(error):
        return Failure(kind="oom", message=text)
    where = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(where[-1].filename).name}:{where[-1].lineno})" if where else ""
    return Failure(kind="error", message=text + place)


def _out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in text
        or "cannot allocate memory" in text
        or "out of memory" in text
    )
