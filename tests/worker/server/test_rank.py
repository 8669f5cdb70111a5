"""A rank's side of the socket, run in this process with a group of one."""

import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autotune import plugins, processes
from autotune.errors import JobError
from autotune.parallel import Group, Order, Reply, Reporter
from autotune.parallel.single import Solo
from autotune.records import codec
from autotune.records.job import MeasuredThroughput, Throughput
from autotune.records.plan import Recipe
from autotune.records.task import TaskSpec
from autotune.worker.server import rank

ANSWER = MeasuredThroughput(samples_per_s=1.0, startup_s=0.5, peak_memory_bytes=7)


def answers(job: Any, root: Path, channel: Reporter, group: Group) -> MeasuredThroughput:
    return ANSWER


def refuses(job: Any, root: Path, channel: Reporter, group: Group) -> MeasuredThroughput:
    raise JobError("nan", "the loss is nan")


def loses_its_group(job: Any, root: Path, channel: Reporter, group: Group) -> MeasuredThroughput:
    raise RuntimeError("[/gloo/transport/tcp/pair.cc:553] Connection closed by peer")


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a body as rank 0; returns its exit status and what it sent to the launcher."""
    monkeypatch.setattr(processes, "die_with_parent", lambda: None)
    solo = SimpleNamespace(join=lambda job, started_s: Solo("cpu", started_s))
    monkeypatch.setattr(plugins, "load", lambda folder, name: solo)
    monkeypatch.setenv("RANK", "0")

    def run(body: str) -> tuple[int, list[dict[str, Any]]]:
        spec = TaskSpec(kind="file", path="unused.py")
        job = Throughput(task=spec, recipe=Recipe(parallel="ddp", ranks=2))
        order = Order(job=job, body=f"{__name__}:{body}", started_s=0.0)
        (tmp_path / "order").write_bytes(codec.encode(order))
        files = str(tmp_path / "order"), str(tmp_path), str(tmp_path / "answer")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "s"))
            listener.listen()
            status = rank.main(*files, str(tmp_path / "s"))
            with listener.accept()[0] as peer, peer.makefile("rb") as lines:
                return status, [json.loads(line) for line in lines]

    return run


def test_an_answer_is_written_and_announced(said: Any, tmp_path: Path) -> None:
    status, messages = said("answers")
    assert status == 0
    assert [m["event"] for m in messages] == ["hello", "done"]
    assert codec.decode((tmp_path / "answer").read_bytes(), Reply).answer == ANSWER


@pytest.mark.parametrize(
    ("body", "kind", "secondary"),
    [("refuses", "nan", False), ("loses_its_group", "error", True), ("nosuch", "error", False)],
)
def test_a_failure_is_reported(said: Any, body: str, kind: str, secondary: bool) -> None:
    status, messages = said(body)
    assert status == 1
    assert messages[-1]["event"] == "failure"
    assert (messages[-1]["kind"], messages[-1]["secondary"]) == (kind, secondary)


def test_reports_wait_for_go_or_stop() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = rank.SocketChannel(ours)
        theirs.sendall(b"go\nstop\n")
        assert [channel.report(1, 0.5), channel.report(2, 0.25)] == [True, False]
        assert json.loads(theirs.recv(4096).splitlines()[0])["value"] == 0.5
        channel.close()
