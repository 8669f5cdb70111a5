"""The task, loaded once: a server below the server, whose jobs' children inherit it by fork.

    owner <--> server --fork--> task server: load once, with one thread --ready--> the same loop
                  `-- a job of the same task is relayed to it, and its lines back --'

Loading takes from a fifth of a second to seconds, as long as many a trial.  Where it fails, or
leaves a thread, an open file, a process or a device in use, which a fork cannot share, each job
loads the task by itself (and the inspection, the first one, reports why loading fails).

What this does not know: state outside the process that loading changes (a temporary folder is
shared by all jobs).
"""

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from autotune import processes
from autotune.processes import Lines, ready
from autotune.records import codec
from autotune.records.base import Record
from autotune.records.task import TaskSpec

_SHARE, _MOST_S = 0.5, 60.0
"""Loading may take this share of the first job's time limit, and at most this many seconds."""
_RELAYED = ("Build", "Inspect", "Score", "Throughput", "Train")
_before: set[str] = set()
Loop = Callable[[Lines, TextIO], None]
"""(requests, answers): what a server does until its requests end."""


class TaskServer:
    """A process that has one task loaded; ``task`` is its specification as jobs give it."""

    def __init__(self, task: Any, pid: int, to_child: BinaryIO, from_child: BinaryIO) -> None:
        self.task = task
        self._stamp = _stamp(task)
        self._pid, self._to_child, self._from_child = pid, to_child, from_child
        self._lines = Lines(from_child)

    def relay(self, message: dict[str, Any], owner: Lines, out: TextIO) -> None:
        """Pass a request on, and lines of either side to the other until the last answer."""
        began = time.monotonic()
        self._send(json.dumps(message).encode())
        while True:
            readable = ready((owner, self._lines), 3600.0)
            if self._lines in readable:
                line = self._lines.next()
                if line is None:
                    send(out, _died(time.monotonic() - began))
                    self.end()
                    return
                out.write(line.decode() + "\n")
                out.flush()
                if json.loads(line)["event"] in ("done", "ready"):
                    return
            if owner in readable:
                line = owner.next()
                if line is None:  # the owner is gone
                    processes.kill_tree(os.getpid(), itself=False)
                    os._exit(1)
                self._send(line)

    def preload(self, message: dict[str, Any]) -> None:
        """Import what the server has imported; waits until that is done."""
        self._send(json.dumps(message).encode())
        self._lines.next()

    @property
    def pid(self) -> int:
        return self._pid

    def matches(self, task: Any) -> bool:
        """Whether it is alive and has this task loaded, from a file that has not changed since."""
        return self.alive and task == self.task and _stamp(task) == self._stamp

    @property
    def alive(self) -> bool:
        return not self._to_child.closed

    def end(self) -> None:
        """Kill it and its descendants."""
        processes.kill_tree(self._pid)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        with contextlib.suppress(OSError):
            self._to_child.close()
        self._from_child.close()

    def _send(self, line: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._to_child.write(line + b"\n")
            self._to_child.flush()


def _died(wall_s: float) -> dict[str, Any]:
    """The result of a job whose task server ended meanwhile."""
    failure = {"kind": "crash", "message": "the process that had the task loaded ended"}
    nothing = {"cpu_s": 0.0, "peak_memory_bytes": 0}
    return {"event": "done", "wall_s": wall_s, "failure": failure, **nothing}


def _stamp(task: Any) -> tuple[int, int] | None:
    try:
        found = Path(task["path"]).stat()
    except OSError:  # a module's dotted name
        return None
    return found.st_mtime_ns, found.st_size


def record_modules() -> None:
    """Record which modules are imported before any of a task's are."""
    if not _before:
        _before.update(sys.modules)


def modules_before() -> set[str]:
    """The modules that were imported before any of a task's were."""
    return set(_before or sys.modules)


def task_of(message: dict[str, Any]) -> Any:
    """The task of a job that needs it loaded; None for any other job."""
    job = message["job"]
    if job.get("pretrained") is not None:  # an inspection that overrides what the file says
        return None
    return job.get("task") if job["type"] in _RELAYED else None


def start(message: dict[str, Any], loop: Loop) -> TaskServer | None:
    """Fork a server of the job's task, and wait until it has loaded it; None where it cannot."""
    if not Path("/proc/self/task").is_dir():
        return None
    task = task_of(message)
    found = TaskServer(
        task, *processes.forked(lambda reader, writer: _serve(task, reader, writer, loop))
    )
    patience_s = min(_MOST_S, _SHARE * float(message["timeout_s"]))
    if found._lines.next_within(patience_s) is None:
        found.end()
        return None
    return found


def _serve(task: Any, reader: BinaryIO, writer: BinaryIO, loop: Loop) -> None:
    """Load the task and serve its jobs; never returns."""
    processes.die_with_parent()
    processes.become_subreaper()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    status = 1
    try:
        obstacle = _load(task)
        if obstacle is None:
            loop(Lines(reader), io.TextIOWrapper(writer))
            status = 0
        else:
            print(f"each job loads the task by itself: {obstacle}", file=sys.stderr, flush=True)
    except BaseException as error:  # the user's code; the job reports it in full
        name = type(error).__name__
        print(f"the task was not loaded for all jobs: {name}", file=sys.stderr, flush=True)
    os._exit(status)


def _load(task: Any) -> str | None:
    """Load it for all later forks; returns why they cannot share it, or None."""
    import torch

    from autotune.worker.contract import preload

    spec = codec.decode(json.dumps({"task": task}).encode(), _Envelope).task
    record_modules()
    threads, files = torch.get_num_threads(), _files()
    torch.set_num_threads(1)  # a pool of threads cannot be forked
    # else `torch.cuda.is_available()` in the user's file would bar all forks from the device
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    preload(spec)
    torch.set_num_threads(threads)
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        return "loading it leaves a thread running"
    if torch.cuda.is_initialized() or _barred():  # type: ignore[no-untyped-call]
        return "loading it uses a device"
    if opened := _files() - files:
        return f"loading it leaves {min(opened)} open"
    if Path("/proc/thread-self/children").read_text().strip():
        return "loading it leaves a process running"
    return None


def _barred() -> bool:
    """Whether forks of this process cannot use a CUDA device; asked in a fork."""
    import torch

    pid = os.fork()
    if pid == 0:
        asked = getattr(torch.cuda, "_is_in_bad_fork", bool)
        os._exit(int(bool(asked())))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0


def _files() -> set[str]:
    """The files that this process has open."""
    found = set()
    for name in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(name.readlink()))
    return found


class _Envelope(Record, frozen=True, kw_only=True):
    task: TaskSpec


def send(out: TextIO, message: dict[str, Any]) -> None:
    """Write one line of the protocol."""
    out.write(json.dumps(message) + "\n")
    out.flush()
