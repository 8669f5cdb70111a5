"""A server below the server that has loaded the task: its jobs' children need not do so again.

    owner <--> server ──fork──> keeper: load once, with one thread ──ready──> the same loop
                  `── a job of that very task is passed on, its lines passed back ──'

Loading takes a fifth of a second to seconds, which is as long as many a trial.  Only what a fork
can share is kept: where loading leaves a thread, a file, a process or a device behind, or fails,
there is no keeper, and each job loads the task by itself.  The first to share it is the inspection,
which otherwise says why loading fails.

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
"""Of a job's time that loading may take before it is left to the job itself."""
_PASSED_ON = ("Build", "Inspect", "Replay", "Score", "Throughput", "Train")
_before: set[str] = set()
Loop = Callable[[Lines, TextIO], None]
"""(requests, answers): what a server does until its requests end."""


class Keeper:
    """The process that keeps one task; ``task`` is its specification as jobs give it."""

    def __init__(self, task: Any, pid: int, down: BinaryIO, up: BinaryIO) -> None:
        self.task = task
        self._stamp = _stamp(task)
        self._pid, self._down, self._up = pid, down, up
        self._lines = Lines(up)

    def passes(self, message: dict[str, Any], owner: Lines, out: TextIO) -> None:
        """Pass one request on and its answers back, up to the last; owner's words in between."""
        began = time.monotonic()
        self._send(json.dumps(message).encode())
        while True:
            speaking = ready((owner, self._lines), 3600.0)
            if self._lines in speaking:
                line = self._lines.next()
                if line is None:
                    say(out, _lost(time.monotonic() - began))
                    self.end()
                    return
                out.write(line.decode() + "\n")
                out.flush()
                if json.loads(line)["event"] in ("done", "ready"):
                    return
            if owner in speaking:
                line = owner.next()
                if line is None:  # the owner is gone
                    processes.kill_tree(os.getpid(), itself=False)
                    os._exit(1)
                self._send(line)

    def preload(self, message: dict[str, Any]) -> None:
        """Let it import the same as the server has; waits until it has."""
        self._send(json.dumps(message).encode())
        self._lines.next()

    @property
    def pid(self) -> int:
        return self._pid

    def keeps(self, task: Any) -> bool:
        """Whether it lives and this is its very task, in a file that nobody has changed since."""
        return not self._down.closed and task == self.task and _stamp(task) == self._stamp

    @property
    def alive(self) -> bool:
        return not self._down.closed

    def end(self) -> None:
        """Kill it with all below it."""
        processes.kill_tree(self._pid)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        with contextlib.suppress(OSError):
            self._down.close()
        self._up.close()

    def _send(self, line: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._down.write(line + b"\n")
            self._down.flush()


def _lost(wall_s: float) -> dict[str, Any]:
    """What is said of a job whose keeper ended under it."""
    failure = {"kind": "crash", "message": "the process that keeps the task ended"}
    nothing = {"cpu_s": 0.0, "peak_memory_bytes": 0}
    return {"event": "done", "wall_s": wall_s, "failure": failure, **nothing}


def _stamp(task: Any) -> tuple[int, int] | None:
    try:
        found = Path(task["path"]).stat()
    except OSError:  # a module's dotted name
        return None
    return found.st_mtime_ns, found.st_size


def note_modules() -> None:
    """Remember what is imported now, before anything is for a task."""
    if not _before:
        _before.update(sys.modules)


def modules_before() -> set[str]:
    """What was imported before anything was for a task."""
    return set(_before or sys.modules)


def task_of(message: dict[str, Any]) -> Any:
    """The task of a job that needs it loaded; None for any other job."""
    job = message["job"]
    if job.get("pretrained") is not None:  # an inspection that overrides what the file says
        return None
    return job.get("task") if job["type"] in _PASSED_ON else None


def kept(message: dict[str, Any], loop: Loop) -> Keeper | None:
    """Fork a keeper of the job's task, and wait until it has loaded it; None where it cannot."""
    if not Path("/proc/self/task").is_dir():
        return None
    task = task_of(message)
    found = Keeper(
        task, *processes.forked(lambda reader, writer: _keep(task, reader, writer, loop))
    )
    patience_s = min(_MOST_S, _SHARE * float(message["timeout_s"]))
    if found._lines.next_within(patience_s) is None:
        found.end()
        return None
    return found


def _keep(task: Any, reader: BinaryIO, writer: BinaryIO, loop: Loop) -> None:
    """Load the task and serve its jobs; never returns."""
    processes.die_with_parent()
    processes.become_subreaper()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    status = 1
    try:
        why = _loaded(task)
        if why is None:
            loop(Lines(reader), io.TextIOWrapper(writer))
            status = 0
        else:
            print(f"each job loads the task by itself: {why}", file=sys.stderr, flush=True)
    except BaseException as error:  # the user's code; a job will say it better
        print(f"the task could not be kept: {type(error).__name__}", file=sys.stderr, flush=True)
    os._exit(status)


def _loaded(task: Any) -> str | None:
    """Load it for all forks to come; why they cannot share what that made."""
    import torch

    from autotune.worker.contract import task as contract_task

    spec = codec.decode(json.dumps({"task": task}).encode(), _Envelope).task
    note_modules()
    threads, files = torch.get_num_threads(), _files()
    torch.set_num_threads(1)  # a pool of threads cannot be forked
    # else a mere `torch.cuda.is_available()` in the user's file bars all forks from the device
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    contract_task.hold(spec)
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
    """Whether forks of this process could not use a CUDA device; a fork can tell."""
    import torch

    pid = os.fork()
    if pid == 0:
        asked = getattr(torch.cuda, "_is_in_bad_fork", bool)
        os._exit(int(bool(asked())))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0


def _files() -> set[str]:
    """What this process has open."""
    found = set()
    for name in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(name.readlink()))
    return found


class _Envelope(Record, frozen=True, kw_only=True):
    task: TaskSpec


def say(out: TextIO, message: dict[str, Any]) -> None:
    """One line of the protocol."""
    out.write(json.dumps(message) + "\n")
    out.flush()
