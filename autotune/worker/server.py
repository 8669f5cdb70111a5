"""The worker server: torch preloaded once, one forked child a job.

    owner --stdin--> server --fork--> child            (one job at a time)
          <--stdout--       <--pipe-- report / answer
                            --pipe--> go / stop

Lines in:  {"job": ..., "timeout_s": ..., "log": ..., "memory_bytes": ...}
           {"preload": [names]}, "go", "stop"
Lines out: {"event": "ready" | "report" | "done", ...}

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
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from autotune import processes
from autotune.processes import Lines, ready
from autotune.records import codec
from autotune.records import job as jobs
from autotune.records.base import Record
from autotune.worker.channel import PipeChannel

_LOG_TAIL = 2000


def serve(root: Path, preload: tuple[str, ...]) -> None:
    """Answer jobs from stdin until it is closed."""
    processes.die_with_parent()
    processes.become_subreaper()
    owner = Lines(sys.stdin.buffer)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints by itself must not speak the protocol
    _preload(preload)
    _say(out, {"event": "ready", "pid": os.getpid()})
    while (line := owner.next()) is not None:
        message = json.loads(line)
        if "preload" in message:
            _preload(tuple(message["preload"]))
            _say(out, {"event": "ready", "pid": os.getpid()})
        else:
            _job(message, root, owner, out)
    processes.kill_tree(os.getpid(), itself=False)


def _preload(names: tuple[str, ...]) -> None:
    for name in names:
        with contextlib.suppress(Exception):
            import_module(name)
    gc.collect()
    gc.freeze()  # keep the children from copying pages only to count references


def _job(message: dict[str, Any], root: Path, owner: Lines, out: TextIO) -> None:
    started = time.monotonic()
    deadline = started + float(message["timeout_s"])
    log = Path(message["log"])
    up_read, up_write = os.pipe()
    down_read, down_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(up_read)
        os.close(down_write)
        _child(message, root, log, os.fdopen(down_read, "rb"), os.fdopen(up_write, "wb"))
    os.close(up_write)
    os.close(down_read)
    with os.fdopen(down_write, "wb") as down, os.fdopen(up_read, "rb") as up:
        answer, failure = _relay(owner, Lines(up), down, out, deadline)
        if failure is not None:
            processes.kill_tree(pid)
    _, status, usage = os.wait4(pid, 0)
    if _left_behind():
        processes.kill_tree(os.getpid(), itself=False)
        _reap()
    done: dict[str, Any] = {
        "event": "done",
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_memory_bytes": usage.ru_maxrss * 1024,
        "wall_s": time.monotonic() - started,
    }
    if answer is None:
        failure = failure or _died(status)
        done["failure"] = {**failure, "log": _tail(log)}
    else:
        done |= answer
        if done.get("failure"):
            done["failure"]["log"] = _tail(log)
    _say(out, done)


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
            _say(out, message)
        if owner in speaking:
            line = owner.next()
            if line is None:  # the owner is gone
                processes.kill_tree(os.getpid(), itself=False)
                os._exit(1)
            with contextlib.suppress(BrokenPipeError):
                down.write(line + b"\n")
                down.flush()


def _child(
    message: dict[str, Any], root: Path, log: Path, reader: BinaryIO, writer: BinaryIO
) -> None:
    """Do the job and answer; never returns."""
    started = time.monotonic()
    processes.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
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
        from autotune.worker.jobs import failure, run

        job = codec.decode(json.dumps({"job": message["job"]}).encode(), _Envelope).job
        answer = run(job, root, PipeChannel(reader, writer))
        done["answer"] = json.loads(codec.encode(answer))
    except BaseException as error:
        import traceback

        with contextlib.suppress(Exception):
            traceback.print_exc()
        done["failure"] = json.loads(codec.encode(failure(error)))
    done["work_s"] = time.monotonic() - started
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    writer.write(json.dumps({"event": "answer", "done": done}).encode() + b"\n")
    writer.flush()
    os._exit(0)


class _Envelope(Record, frozen=True, kw_only=True):
    job: jobs.Job


def _say(out: TextIO, message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


def _died(status: int) -> dict[str, str]:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name
        kind = "killed" if number == signal.SIGKILL else "crash"
        hint = "; the kernel does this when memory runs out" if kind == "killed" else ""
        return {"kind": kind, "message": f"the process was ended by {name}{hint}"}
    code = os.waitstatus_to_exitcode(status)
    return {"kind": "exit", "message": f"the process exited with status {code} without an answer"}


def _left_behind() -> bool:
    """Whether the job left a process: orphans are children of this subreaper."""
    try:
        return bool(Path("/proc/thread-self/children").read_text().strip())
    except OSError:
        return True


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _tail(log: Path) -> str:
    try:
        data = log.read_bytes()[-_LOG_TAIL:]
    except OSError:
        return ""
    return data.decode(errors="replace").strip()
