"""The worker server: torch preloaded once, one forked child a job.

    owner --stdin--> server --fork--> child      (one job at a time, the next child waits)
          <--stdout--       <--pipe-- report / answer
                            --pipe--> go / stop

Lines in:  {"job": ..., "timeout_s": ..., "log": ..., "memory_bytes": ..., "alone": ...}
           {"preload": [names]}, "go", "stop"
Lines out: {"event": "ready" | "report" | "done", ...}

The first task that a job needs is loaded once, in a process below this one (`task_cache`).  What
the user's file imports is imported before that, in the server: threads that imports start do not
survive a fork.  (Not for a first job that runs ``alone``, as what is timed must.)

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
_HANDLERS: dict[type, str] = {
    jobs.Inspect: "survey.inspect:run",
    jobs.Outline: "survey.meta_inspect:run",
    jobs.Probe: "machine.profile:run",
    jobs.Menu: "survey.options:run",
    jobs.Train: "training.train:run",
    jobs.Throughput: "training.train:throughput",
    jobs.Build: "build.build:run",
    jobs.Score: "evaluation.evaluate:run",
}


def serve(root: Path, preload: tuple[str, ...]) -> None:
    """Answer jobs from stdin until it is closed."""
    processes.die_with_parent()
    processes.become_subreaper()
    owner = Lines(sys.stdin.buffer)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # prints must not reach the protocol's stream
    _preload(preload)
    _RequestLoop(root, caches=True).run(owner, out)
    processes.kill_tree(os.getpid(), itself=False)


class _RequestLoop:
    """Answers requests until there are no more.  With ``caches``, a process below keeps the first
    task that a job needs loaded, and answers the jobs of that task.
    """

    def __init__(self, root: Path, *, caches: bool) -> None:
        self._root = root
        self._first_job = self._caches = caches
        self._task_server: task_cache.TaskServer | None = None

    def run(self, owner: Lines, out: TextIO) -> None:
        self._next_child: _Child | None = _fork(self._root)
        task_cache.send(out, {"event": "ready", "pid": os.getpid()})
        while (line := owner.next()) is not None:
            message = json.loads(line)
            if "preload" in message:
                self._preload(message)
                task_cache.send(out, {"event": "ready", "pid": os.getpid()})
                continue
            started = time.monotonic()
            if (server := self._server_of(message)) is not None:
                server.relay(message, owner, out)
            else:
                self._answer(message, started, owner, out)

    def _preload(self, message: dict[str, Any]) -> None:
        self._end_next_child()
        _preload(tuple(message["preload"]))
        if self._task_server is not None and self._task_server.alive:
            self._task_server.preload(message)
        else:
            self._next_child = _fork(self._root)

    def _end_next_child(self) -> None:
        if self._next_child is not None:
            self._next_child.end()
            self._next_child = None

    def _server_of(self, message: dict[str, Any]) -> task_cache.TaskServer | None:
        """The process that has the job's task loaded; starts it for the first task."""
        task = task_cache.task_of(message)
        if task is None:
            return None
        if self._caches:
            self._caches = False
            below = _RequestLoop(self._root, caches=False)
            self._end_next_child()  # the fork would hold its end of a pipe open
            self._preload_imports(message)
            self._task_server = task_cache.start(message, below.run)
        found = self._task_server
        return found if found is not None and found.matches(task) else None

    def _answer(self, message: dict[str, Any], started: float, owner: Lines, out: TextIO) -> None:
        child = self._next_child or _fork(self._root)
        child.begin(message)
        self._preload_imports(message)
        others = set()
        if self._task_server is None or not self._task_server.alive:
            self._next_child = _fork(
                self._root
            )  # while the job runs, so that nobody waits for a fork
            others.add(self._next_child.pid)
        else:
            self._next_child = None
            others.add(self._task_server.pid)
        _job(message, started, child, owner, out)
        child.end(others)

    def _preload_imports(self, message: dict[str, Any]) -> None:
        """Import what the first job's file imports, for all that are forked later."""
        if self._first_job and not message["alone"]:
            task_cache.record_modules()
            _preload(_file_imports(message["job"]))
        self._first_job = False


def _file_imports(job: dict[str, Any]) -> tuple[str, ...]:
    """The installed modules that the user's file imports unconditionally."""
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
    gc.freeze()  # else reference counts make children copy pages


class _Child(NamedTuple):
    """A forked child that waits for its job."""

    pid: int
    to_child: BinaryIO
    from_child: BinaryIO

    def begin(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.to_child.write(json.dumps(message).encode() + b"\n")
            self.to_child.flush()

    def end(self, others: Set[int] = frozenset()) -> None:
        """Close its pipes and reap it, then kill whatever processes it left, except ``others``."""
        self.to_child.close()
        self.from_child.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        for orphan in _children() - others:
            processes.kill_tree(orphan)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(orphan, 0)


def _fork(root: Path) -> _Child:
    return _Child(*processes.forked(lambda reader, writer: _child(root, reader, writer)))


def _job(message: dict[str, Any], started: float, child: _Child, owner: Lines, out: TextIO) -> None:
    """Relay until the job ends, and send its result before the child is reaped: freeing the child's
    memory may take longer than the job.
    """
    deadline = started + float(message["timeout_s"])
    log = Path(message["log"])
    answer, failure = _relay(owner, Lines(child.from_child), child.to_child, out, deadline)
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
    task_cache.send(out, {"event": "done", "wall_s": time.monotonic() - started, **answer})


def _relay(
    owner: Lines, child: Lines, to_child: BinaryIO, out: TextIO, deadline: float
) -> tuple[dict[str, Any] | None, dict[str, str] | None]:
    """Relay reports and decisions until the child answers, dies or exceeds the deadline."""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return None, {"kind": "hang", "message": "no answer within its time limit"}
        readable = ready((owner, child), left)
        if child in readable:
            line = child.next()
            if line is None:
                return None, None
            message = json.loads(line)
            if message["event"] == "answer":
                return message["done"], None
            task_cache.send(out, message)
        if owner in readable:
            line = owner.next()
            if line is None:  # the owner is gone
                processes.kill_tree(os.getpid(), itself=False)
                os._exit(1)
            with contextlib.suppress(BrokenPipeError):
                to_child.write(line + b"\n")
                to_child.flush()


def _child(root: Path, reader: BinaryIO, writer: BinaryIO) -> None:
    """Wait for a job, run it and answer; never returns."""
    processes.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = reader.readline()
    if not line:  # ended before it got a job
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
        from autotune.worker.user_file.errors import failure

        job = codec.decode(json.dumps({"job": message["job"]}).encode(), _Envelope).job
        answer = _run(job, root, PipeChannel(reader, writer))
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


def _run(job: jobs.AnyJob, root: Path, channel: PipeChannel) -> jobs.Answer:
    """Run one job in this process."""
    module, _, function = _HANDLERS[type(job)].partition(":")
    handler = getattr(import_module(f"autotune.worker.{module}"), function)
    answer: jobs.Answer = handler(job, root, channel)
    return answer


def _usage() -> dict[str, float]:
    """Resources of this child and of the processes that it waited for."""
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
