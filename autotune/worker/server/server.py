"""The worker server: torch preloaded once, one forked child a job.

    owner --stdin--> server --fork--> child            (one job at a time, the next child spare)
          <--stdout--       <--pipe-- report / answer
                            --pipe--> go / stop

Lines in:  {"job": ..., "timeout_s": ..., "log": ..., "memory_bytes": ..., "alone": ...}
           {"preload": [names]}, "go", "stop"
Lines out: {"event": "ready" | "report" | "done", ...}

The first task that a job needs loaded is loaded once, below (`keeper`).
What the user's file imports is imported before that: threads that it leaves do not outlive a fork.
(Not for a first job that is to be ``alone``, as what is timed must be.)

The server does no tensor work and touches no device before it forks: a forked child of a
process that has used OpenMP or CUDA hangs.  It is a child-subreaper, so whatever a job
leaves behind is its child and is ended with it.
"""

import contextlib
import gc
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Set
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

from autotune import module_locator, processes
from autotune.processes import Lines, ready
from autotune.records import codec
from autotune.records import job as jobs
from autotune.records.base import Record
from autotune.worker.channel import PipeChannel
from autotune.worker.server import task_cache

_LOG_TAIL = 2000


def serve(root: Path, preload: tuple[str, ...]) -> None:
    """Answer jobs from stdin until it is closed."""
    processes.die_with_parent()
    processes.become_subreaper()
    owner = Lines(sys.stdin.buffer)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints by itself must not speak the protocol
    _preload(preload)
    _Loop(root, keeps=True).run(owner, out)
    processes.kill_tree(os.getpid(), itself=False)


class _Loop:
    """Requests until there are no more; ``keeps``: the first task that jobs need loaded is kept
    by a process below (`keeper`), which answers those of that very task.
    """

    def __init__(self, root: Path, *, keeps: bool) -> None:
        self._root = root
        self._fresh = self._keeps = keeps
        self._keeper: task_cache.Keeper | None = None

    def run(self, owner: Lines, out: TextIO) -> None:
        self._spare: _Child | None = _fork(self._root)
        task_cache.say(out, {"event": "ready", "pid": os.getpid()})
        while (line := owner.next()) is not None:
            message = json.loads(line)
            if "preload" in message:
                self._preload(message)
                task_cache.say(out, {"event": "ready", "pid": os.getpid()})
                continue
            started = time.monotonic()
            if (below := self._below(message)) is not None:
                below.passes(message, owner, out)
            else:
                self._answer(message, started, owner, out)

    def _preload(self, message: dict[str, Any]) -> None:
        self._no_spare()
        _preload(tuple(message["preload"]))
        if self._keeper is not None and self._keeper.alive:
            self._keeper.preload(message)
        else:
            self._spare = _fork(self._root)

    def _no_spare(self) -> None:
        if self._spare is not None:
            self._spare.end()
            self._spare = None

    def _below(self, message: dict[str, Any]) -> "task_cache.Keeper | None":
        """Who keeps the job's task."""
        task = task_cache.task_of(message)
        if task is None:
            return None
        if self._keeps:
            self._keeps = False
            below = _Loop(self._root, keeps=False)
            self._no_spare()  # whose end of a pipe a fork would hold open
            self._foresee(message)
            self._keeper = task_cache.kept(message, below.run)
        found = self._keeper
        return found if found is not None and found.keeps(task) else None

    def _answer(self, message: dict[str, Any], started: float, owner: Lines, out: TextIO) -> None:
        child = self._spare or _fork(self._root)
        child.begin(message)
        self._foresee(message)
        others = set()
        if self._keeper is None or not self._keeper.alive:
            self._spare = _fork(self._root)  # while the job runs, so that nobody waits for a fork
            others.add(self._spare.pid)
        else:
            self._spare = None
            others.add(self._keeper.pid)
        _job(message, started, child, owner, out)
        child.end(others)

    def _foresee(self, message: dict[str, Any]) -> None:
        """Import what the first job's file will, for all that are forked later."""
        if self._fresh and not message["alone"]:
            task_cache.note_modules()
            _preload(_likely(message["job"]))
        self._fresh = False


def _likely(job: dict[str, Any]) -> tuple[str, ...]:
    """The installed modules that the user's file imports whatever happens."""
    from importlib.metadata import packages_distributions

    try:
        path = module_locator.locate(job["task"]["path"])
        return () if path is None else module_locator.needed(path, packages_distributions())
    except (KeyError, OSError, SyntaxError, TypeError, ValueError):
        return ()


def _preload(names: tuple[str, ...]) -> None:
    for name in names:
        with contextlib.suppress(Exception):
            import_module(name)
    gc.collect()
    gc.freeze()  # keep the children from copying pages only to count references


class _Child(NamedTuple):
    """A forked child that waits for its job; forked while nobody waits for it."""

    pid: int
    down: BinaryIO
    up: BinaryIO

    def begin(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.down.write(json.dumps(message).encode() + b"\n")
            self.down.flush()

    def end(self, others: Set[int] = frozenset()) -> None:
        """Close its pipes and reap it, then end whatever it left behind (but not the others)."""
        self.down.close()
        self.up.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        for orphan in _children() - others:
            processes.kill_tree(orphan)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(orphan, 0)


def _fork(root: Path) -> _Child:
    return _Child(*processes.forked(lambda reader, writer: _child(root, reader, writer)))


def _job(message: dict[str, Any], started: float, child: _Child, owner: Lines, out: TextIO) -> None:
    """Relay until the job ends and say how; the answer is said before the child is reaped, since
    taking its memory apart takes longer than many a job.
    """
    deadline = started + float(message["timeout_s"])
    log = Path(message["log"])
    answer, failure = _relay(owner, Lines(child.up), child.down, out, deadline)
    if answer is None:
        if failure is not None:
            processes.kill_tree(child.pid)
        _, status, usage = os.wait4(child.pid, 0)
        answer = {
            "failure": failure or _died(status),
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "peak_memory_bytes": usage.ru_maxrss * 1024,
        }
    if answer.get("failure"):
        answer["failure"]["log"] = _tail(log)
    task_cache.say(out, {"event": "done", "wall_s": time.monotonic() - started, **answer})


def _relay(
    owner: Lines, child: Lines, down: BinaryIO, out: TextIO, deadline: float
) -> tuple[dict[str, Any] | None, dict[str, str] | None]:
    """Pass reports up and decisions down until the child answers, dies or is late."""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return None, {"kind": "hang", "message": "no answer within its time limit"}
        speaking = ready((owner, child), left)
        if child in speaking:
            line = child.next()
            if line is None:
                return None, None
            message = json.loads(line)
            if message["event"] == "answer":
                return message["done"], None
            task_cache.say(out, message)
        if owner in speaking:
            line = owner.next()
            if line is None:  # the owner is gone
                processes.kill_tree(os.getpid(), itself=False)
                os._exit(1)
            with contextlib.suppress(BrokenPipeError):
                down.write(line + b"\n")
                down.flush()


def _child(root: Path, reader: BinaryIO, writer: BinaryIO) -> None:
    """Wait for a job, do it and answer; never returns."""
    processes.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = reader.readline()
    if not line:  # ended as a spare
        os._exit(0)
    started = time.monotonic()
    message = json.loads(line)
    sink = os.open(message["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    sys.stdin = os.fdopen(0, "r")
    limit = message.get("memory_bytes")
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
    done: dict[str, Any] = {}
    try:
        from autotune.worker.server.dispatch import run
        from autotune.worker.user_file.errors import failure

        job = codec.decode(json.dumps({"job": message["job"]}).encode(), _Envelope).job
        answer = run(job, root, PipeChannel(reader, writer))
        done["answer"] = json.loads(codec.encode(answer))
    except BaseException as error:
        import traceback

        with contextlib.suppress(Exception):
            traceback.print_exc()
        done["failure"] = json.loads(codec.encode(failure(error)))
    done["work_s"] = time.monotonic() - started
    done |= _usage()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    writer.write(json.dumps({"event": "answer", "done": done}).encode() + b"\n")
    writer.flush()
    os._exit(0)


def _usage() -> dict[str, float]:
    """Of this child and of all that it waited for."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    below = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = own.ru_utime + own.ru_stime + below.ru_utime + below.ru_stime
    return {"cpu_s": cpu_s, "peak_memory_bytes": 1024 * max(own.ru_maxrss, below.ru_maxrss)}


class _Envelope(Record, frozen=True, kw_only=True):
    job: jobs.AnyJob


def _died(status: int) -> dict[str, str]:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name
        kind = "killed" if number == signal.SIGKILL else "crash"
        hint = "; the kernel does this when memory runs out" if kind == "killed" else ""
        return {"kind": kind, "message": f"the process was ended by {name}{hint}"}
    code = os.waitstatus_to_exitcode(status)
    return {"kind": "exit", "message": f"the process exited with status {code} without an answer"}


def _children() -> set[int]:
    """Orphans of a job become children of this subreaper."""
    try:
        return {int(pid) for pid in Path("/proc/thread-self/children").read_text().split()}
    except OSError:
        import psutil

        return {process.pid for process in psutil.Process().children()}


def _tail(log: Path) -> str:
    try:
        data = log.read_bytes()[-_LOG_TAIL:]
    except OSError:
        return ""
    return data.decode(errors="replace").strip()
