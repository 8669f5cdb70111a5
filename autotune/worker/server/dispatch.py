"""Which handler does which job."""

from importlib import import_module
from pathlib import Path

from autotune.records import job as jobs
from autotune.worker.channel import Channel

_HANDLERS: dict[type, str] = {
    jobs.Inspect: "survey.inspect:run",
    jobs.Outline: "survey.meta_inspect:run",
    jobs.Probe: "machine.profile:run",
    jobs.Replay: "opbench.op_benchmark:run",
    jobs.Menu: "survey.options:run",
    jobs.Train: "training.train:run",
    jobs.Throughput: "training.train:throughput",
    jobs.Build: "build.build:run",
    jobs.Score: "evaluation.evaluate:run",
}


def run(job: jobs.AnyJob, root: Path, channel: Channel) -> jobs.Answer:
    """Run one job in this process."""
    module, _, function = _HANDLERS[type(job)].partition(":")
    handler = getattr(import_module(f"autotune.worker.{module}"), function)
    answer: jobs.Answer = handler(job, root, channel)
    return answer
