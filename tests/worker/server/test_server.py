"""The worker server through the real bridge: every way in which a job can end badly."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from autotune.bridge.process import ProcessBridge
from autotune.records import job as jobs
from autotune.records.plan import Recipe
from autotune.records.task import TaskSpec

HEAD = """
import os, sys, time, signal
import torch
from torch import nn
from torch.utils.data import TensorDataset

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
    def forward(self, x):
        return self.layer(x)

def make_model():
    return Net()

def train_data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 4, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long())
"""

ENDINGS = {
    "exit": "sys.exit(7)",
    "hard exit": "os._exit(3)",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "crash": "os.kill(os.getpid(), signal.SIGSEGV)",
    "hang": "time.sleep(1000)",
    "oom": "torch.empty(1 << 44)",
    "python oom": "bytearray(1 << 44)",
    "raise": "raise KeyError('the forward is wrong')",
}
KINDS = {"hard exit": "exit", "raise": "contract", "python oom": "oom"}


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessBridge]:
    found = ProcessBridge(tmp_path_factory.mktemp("work"), memory_bytes=8 << 30)
    yield found
    found.close()


def _train(tmp_path: Path, ending: str) -> jobs.Train:
    path = tmp_path / "model.py"
    path.write_text(HEAD.replace("return self.layer(x)", ending + "\n        return self.layer(x)"))
    return jobs.Train(task=TaskSpec(kind="file", path=str(path)), recipe=Recipe(), epochs=1)


@pytest.mark.parametrize("name", ENDINGS)
def test_a_bad_ending_is_data(name: str, bridge: ProcessBridge, tmp_path: Path) -> None:
    result = bridge.run(_train(tmp_path, ENDINGS[name]), timeout_s=4.0)
    assert result.failure is not None
    expected = {KINDS.get(name, name)} | ({"error", "contract"} if name == "raise" else set())
    assert result.failure.kind in expected, result.failure
    assert result.failure.message
    good = bridge.run(_train(tmp_path, "pass"), timeout_s=60.0)
    assert good.failure is None, good.failure
    _assert_idle()


def test_what_a_job_leaves_behind_ends_with_it(bridge: ProcessBridge, tmp_path: Path) -> None:
    result = bridge.run(_train(tmp_path, "os.fork() or time.sleep(1000)"), timeout_s=60.0)
    assert result.failure is None
    _assert_idle()


def _assert_idle() -> None:
    """The server, the one that keeps a task and a spare child alone; what was left behind has a
    moment to go.
    """
    deadline = time.monotonic() + 5
    while len(found := _descendants()) > 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert set(found) == {"autotune.worker"}
    assert len(found) <= 3


def _descendants() -> list[str]:
    """Modules of what runs below this process."""
    out = []
    for process in psutil.Process(os.getpid()).children(recursive=True):
        try:
            line = process.cmdline()
        except psutil.Error:  # gone, or about to be reaped
            continue
        out += [line[i + 1] for i, word in enumerate(line[:-1]) if word == "-m"]
    return out


def test_what_a_job_prints_does_not_speak_the_protocol(
    bridge: ProcessBridge, tmp_path: Path
) -> None:
    job = _train(tmp_path, 'print(\'{"event": "done"}\', flush=True)')
    assert bridge.run(job, timeout_s=60.0).failure is None


def test_a_failure_keeps_the_last_lines_of_its_log(bridge: ProcessBridge, tmp_path: Path) -> None:
    job = _train(tmp_path, "print('about to end'); sys.stdout.flush(); os._exit(1)")
    result = bridge.run(job, timeout_s=60.0)
    assert result.failure is not None
    assert "about to end" in result.failure.log


def test_reports_are_answered(bridge: ProcessBridge, tmp_path: Path) -> None:
    import msgspec

    job = msgspec.structs.replace(_train(tmp_path, "pass"), epochs=4, rungs=(1, 2, 4))
    seen: list[int] = []

    def until_two(step: int, value: float) -> bool:
        del value
        seen.append(step)
        return step < 2

    result = bridge.run(job, timeout_s=60.0, on_report=until_two)
    assert isinstance(result.answer, jobs.Trained)
    assert seen == [1, 2]
    assert result.answer.stopped
    assert result.answer.epochs == 2
    assert [step for step, _ in result.reports] == [1, 2]


def test_overhead_is_small_once_the_server_is_warm(bridge: ProcessBridge, tmp_path: Path) -> None:
    result = bridge.run(_train(tmp_path, "pass"), timeout_s=60.0)
    assert result.wall_s - result.work_s >= 0
    assert result.cpu_s > 0
    assert result.peak_memory_bytes > 0


def test_the_server_starts_again_after_it_was_killed(bridge: ProcessBridge, tmp_path: Path) -> None:
    server = psutil.Process(os.getpid()).children()[0]
    server.kill()
    time.sleep(0.1)
    first = bridge.run(_train(tmp_path, "pass"), timeout_s=60.0)
    second = bridge.run(_train(tmp_path, "pass"), timeout_s=60.0)
    assert first.failure is None or first.failure.kind == "crash"
    assert second.failure is None


def test_what_the_file_imports_is_there_when_it_is_loaded_for_all_jobs(tmp_path: Path) -> None:
    written = tmp_path / "written"
    path = tmp_path / "model.py"
    path.write_text(
        f"import sys\nopen({str(written)!r}, 'a').write(f'{{\"sklearn\" in sys.modules}} ')\n"
        "import sklearn\n" + HEAD
    )
    bridge = ProcessBridge(tmp_path / "work")
    try:
        for _ in range(2):
            job = jobs.Inspect(task=TaskSpec(kind="file", path=str(path)))
            answer = bridge.run(job, timeout_s=60).answer
            assert isinstance(answer, jobs.Inspection)
            assert "sklearn" in answer.imports  # for a server that has to start again
    finally:
        bridge.close()
    assert written.read_text().split() == ["True"]
