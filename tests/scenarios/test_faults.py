"""Things that go wrong in the middle: the run ends well and names each."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.scenarios.conftest import EXAMPLES, QUICK, ROOT, Ran, command, read, workers

Run = Callable[..., Ran]

# the n-th training in this folder ends as the n-th word says; ranks of one training share it
FAULTY = """
import os, signal, sys, time
from pathlib import Path
import torch
from torch import nn
from torch.utils.data import TensorDataset
HERE = Path({folder!r})
counted = []

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    def forward(self, x):
        if self.training and torch.is_grad_enabled() and not counted:
            counted.append(True)
            misbehave()
        return self.net(x)

def misbehave():
    if os.environ.get("RANK", "0") != "0":
        time.sleep(1000 if (HERE / "hang-rank").exists() else 0)
        return
    words = {words!r}
    number = len(list(HERE.glob("count-*")))
    (HERE / f"count-{{number}}").touch()
    word = words[number] if number < len(words) else ""
    if word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "hang":
        time.sleep(1000)
    elif word == "oom":
        torch.empty(1 << 44)

def make_model():
    return Net()

def train_data():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(600, 8, generator=g)
    return TensorDataset(x, (x[:, :4].sum(1) > 0).long())
"""


def test_each_fault_is_named_and_nothing_is_left_behind(run: Run, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "hang-rank").touch()
    # two layouts' probes (one may be repeated) and the baseline come first; out of memory is
    # tried again in two parts
    words = ["", "", "", "", "kill", "oom", "oom", "hang"]
    model = tmp_path / "faulty.py"
    model.write_text(FAULTY.format(folder=str(state), words=words))
    ran = run(
        model, "--trials", "2", "--train-trials", "6", "--epochs", "3", "--time", "600s",
        "--only", "runtime=eager", "--only", "precision=fp32", "--without", "prune",
        "--threads", "1",
    )  # fmt: skip
    assert ran.report is not None, ran.err
    assert ran.report["status"] == "complete"
    kinds = [t["failure"]["kind"] for t in ran.report["train_trials"] if t["failure"]]
    hung = [s for s in ran.report["survey"]["layouts"] if s["parallel"] == "ddp"]
    assert hung[0]["failure"].startswith("hang")
    assert {"killed", "oom"} <= set(kinds)
    assert "hang" in kinds
    assert not workers(tmp_path)


def test_ctrl_c_leaves_a_valid_report_and_resume_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    args = [sys.executable, "-m", "autotune", "run", EXAMPLES / "digits_mlp.py", "--out", folder,
            "--train-trials", "5", "--trials", "2", "--epochs", "2", "--time", "200s",
            "--only", "runtime=eager", "--without", "prune,ddp", "--threads", "1"]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [str(a) for a in args], env=env, stderr=subprocess.PIPE, text=True,
        # tests that run in the background have it ignored, and so would what they start
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        report = read(folder)
        if report is not None and len(report["train_trials"]) >= 3:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    first = read(folder)
    assert first is not None, err
    assert first["status"] == "interrupted"
    assert process.returncode == 4, err
    assert (folder / "report.html").exists()
    seen = first["train_trials"]
    assert len(seen) >= 3
    done = command("run", EXAMPLES / "digits_mlp.py", "--resume", folder)
    second = read(folder)
    assert second is not None, done.stderr
    assert second["status"] == "complete", done.stderr
    assert len(second["train_trials"]) >= len(seen)
    for before, after in zip(seen, second["train_trials"], strict=False):
        # one that was paused may have gone on, a leader been trained with more seeds
        assert after["recipe"] == before["recipe"]
        assert after["values"][: len(before["values"])] == before["values"]


def test_kill_nine_is_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    args = [sys.executable, "-m", "autotune", "run", EXAMPLES / "digits_mlp.py", "--out", folder,
            *QUICK, "--only", "runtime=eager", "--without", "prune,ddp"]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [str(a) for a in args], env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    recording = folder / "work" / "recording.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if recording.exists() and recording.read_bytes().count(b"\n") >= 8:
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    with recording.open("ab") as file:
        file.write(b'{"key": "torn')
    done = command("run", EXAMPLES / "digits_mlp.py", "--resume", folder)
    report = read(folder)
    assert report is not None, done.stderr
    assert report["status"] == "complete", done.stderr


BAD = {
    "missing file": (None, "no file"),
    "syntax error": ("def make_model(:\n    pass\n", "line 1"),
    "no model": ("x = 1\n", "make_model"),
    "exits": ("import sys\nsys.exit(3)\n", "exit"),
    "raises": ("raise RuntimeError('at import')\n", "at import"),
    "crashes": ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n", "crash"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_model_files_are_clear_errors(run: Run, tmp_path: Path, name: str) -> None:
    text, said = BAD[name]
    model = tmp_path / "model.py"
    if text is not None:
        model.write_text(text)
    ran = run(model)
    assert ran.code == 2, ran.err
    assert said in ran.err
    assert "Traceback" not in ran.err.split("error:")[0]
    assert not ran.folder.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--latency", "5 apples"), "5 apples"),
        (("--energy", "-3mJ"), "-3mJ"),
        (("--latency", "5mJ"), "5mJ"),
        (("--only", "runtime=tpu"), "runtime=tpu"),
        (("--profile", "nowhere"), "nowhere"),
    ],
)
def test_bad_options_are_clear_errors(run: Run, options: tuple[str, str], said: str) -> None:
    ran = run(EXAMPLES / "digits_mlp.py", *options)
    assert ran.code == 2
    assert said in ran.err


def test_an_output_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = command("run", EXAMPLES / "digits_mlp.py", "--out", tmp_path / "file" / "x")
    assert done.returncode == 2
    assert "--out" in done.stderr
