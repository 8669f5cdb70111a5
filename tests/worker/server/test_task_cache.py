"""A task is loaded once for all jobs where a fork can share what that made, else by each job."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from autotune.bridge.process import ProcessBridge
from autotune.records import job as jobs
from autotune.records.plan import Recipe
from autotune.records.task import TaskSpec

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="tasks are kept on Linux alone"
)
SOURCE = """
from pathlib import Path
import torch
from torch import nn
from torch.utils.data import TensorDataset

with (Path(__file__).parent / "loads.txt").open("a") as counted:
    counted.write("once\\n")
{more}

def make_model():
    return nn.Linear(4, 2)

def train_data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 4, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long())
"""
LEFT = {
    "a thread": "import threading, time\n"
    "threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
    "a file": "held = open(__file__)",
    "a device": "torch.cuda._is_in_bad_fork = lambda: True",
    "a process": "import subprocess\nheld = subprocess.Popen(['sleep', '9'])",
}


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[ProcessBridge]:
    found = ProcessBridge(tmp_path / "work")
    yield found
    found.close()


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., jobs.Train]:
    def make(more: str = "", **fields: Any) -> jobs.Train:
        path = tmp_path / "model.py"
        if not path.exists():
            path.write_text(SOURCE.format(more=more))
        task = TaskSpec(kind="file", path=str(path), **fields)
        return jobs.Train(task=task, recipe=Recipe(), epochs=1)

    return make


def loads(tmp_path: Path) -> int:
    return len((tmp_path / "loads.txt").read_text().splitlines())


def losses(result: jobs.Result) -> tuple[float, ...]:
    assert isinstance(result.answer, jobs.Trained), result.failure
    return result.answer.train_losses


def test_jobs_of_one_task_load_it_once_and_compute_the_same(
    bridge: ProcessBridge, job: Callable[..., jobs.Train], tmp_path: Path
) -> None:
    first = losses(bridge.run(job(), timeout_s=60.0))
    bridge.preload(("fractions",))
    assert losses(bridge.run(job(), timeout_s=60.0)) == first
    assert loads(tmp_path) == 1
    other = bridge.run(job(args=("--other",)), timeout_s=60.0)  # another task: loaded by the job
    assert losses(other) == first
    assert loads(tmp_path) == 2
    assert losses(bridge.run(job(), timeout_s=60.0)) == first
    assert loads(tmp_path) == 2


@pytest.mark.parametrize("left", LEFT)
def test_what_a_fork_cannot_share_is_loaded_by_each_job(
    left: str, bridge: ProcessBridge, job: Callable[..., jobs.Train], tmp_path: Path
) -> None:
    for _ in range(2):
        losses(bridge.run(job(LEFT[left]), timeout_s=60.0))
    assert loads(tmp_path) == 3  # once to find out
    log = (tmp_path / "work" / "logs" / "server.log").read_text()
    why = "uses a device" if left == "a device" else "leaves"
    assert f"each job loads the task by itself: loading it {why}" in log


def test_a_file_that_ends_the_process_fails_its_job_alone(
    bridge: ProcessBridge, job: Callable[..., jobs.Train]
) -> None:
    for _ in range(2):
        result = bridge.run(job("import os\nos._exit(3)"), timeout_s=60.0)
        assert result.failure is not None
        assert result.failure.kind == "exit"


def test_a_file_that_hangs_is_late_within_its_jobs_time(
    bridge: ProcessBridge, job: Callable[..., jobs.Train]
) -> None:
    began = time.monotonic()
    result = bridge.run(job("import time\ntime.sleep(600)"), timeout_s=4.0)
    assert result.failure is not None
    assert result.failure.kind == "hang"
    assert time.monotonic() - began < 60


def test_the_run_goes_on_where_the_task_server_was_killed(
    bridge: ProcessBridge, job: Callable[..., jobs.Train], tmp_path: Path
) -> None:
    first = losses(bridge.run(job(), timeout_s=60.0))
    server = psutil.Process(os.getpid()).children()[0]
    (task_server,) = server.children()
    os.kill(task_server.pid, signal.SIGKILL)
    lost = bridge.run(job(), timeout_s=60.0)
    assert lost.failure is not None
    assert lost.failure.kind == "crash"
    assert losses(bridge.run(job(), timeout_s=60.0)) == first


def test_a_file_that_was_changed_is_read_again(
    bridge: ProcessBridge, job: Callable[..., jobs.Train], tmp_path: Path
) -> None:
    losses(bridge.run(job(), timeout_s=60.0))
    (tmp_path / "model.py").write_text(SOURCE.format(more="raise KeyError('changed')"))
    failure = bridge.run(job(), timeout_s=60.0).failure
    assert failure is not None
    assert "changed" in failure.message


def test_another_seed_is_another_task(
    bridge: ProcessBridge, job: Callable[..., jobs.Train], tmp_path: Path
) -> None:
    given = job()
    losses(bridge.run(given, timeout_s=60.0))
    task = msgspec.structs.replace(given.task, seed=1)
    losses(bridge.run(msgspec.structs.replace(given, task=task), timeout_s=60.0))
    assert loads(tmp_path) == 2
