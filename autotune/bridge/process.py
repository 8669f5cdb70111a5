"""The bridge to real processes, each a ``python -m autotune.worker...`` of its own.

    worker server         one a run; forks a child for each job but those below
    measure               a new interpreter for each Measure job
    meter process         one a run, started by the first job that measures energy
    power guard           one a run, started by the first job that needs power limits

Jobs that time something hold a lock on the machine, which other runs of the same user wait for.
"""

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from autotune import processes
from autotune.bridge.power_guard import PowerGuard
from autotune.bridge.protocol import OnReport
from autotune.errors import WorkerError
from autotune.processes import Lines
from autotune.records import codec
from autotune.records import job as jobs
from autotune.records.job import A, AnyResult, Job, Result
from autotune.records.measurement import EnergySource
from autotune.records.report import Failure

_TIMED = (jobs.Measure, jobs.Train, jobs.Throughput, jobs.Probe)
"""Jobs that hold the machine's lock while they run."""
_METERED = jobs.Measure | jobs.Train | jobs.Throughput | jobs.Probe
_OUT_OF_MEMORY = 75
"""Exit status of `worker.measure.measure`."""
_GRACE_S = 10.0
"""Beyond a job's time limit, for the server to kill it and answer."""

# Modules that every job needs.  torch imports its compiler (1.6 s) when the first optimizer is
# made, and when operators are first counted.
_PRELOAD = (
    "torch",
    "torch._dynamo",
    "torch.export",
    "numpy.random",
    "autotune.worker.training.train",
)

J = TypeVar("J", bound=Job[Any])


def meter_arguments(device: str, root: str | None, label: str) -> tuple[str, ...]:
    """Arguments of the meter process.

    Args:
        device: the GPUs are counted unless this is ``cpu``, even where a plan leaves them idle.
        root: a powercap tree other than this machine's, or None.
        label: the origin of that tree: ``host`` or ``simulated``.
    """
    gpu = device != "cpu" and any(Path("/dev").glob("nvidia[0-9]*"))
    args = ("--cuda",) if gpu else ()
    return args if root is None else (*args, "--powercap-root", root, "--origin", label)


class ProcessBridge:
    """See `autotune.bridge.protocol.Bridge`.

    Args:
        root: the work folder that the paths in jobs are relative to.
        meter: further arguments of the meter process, see `meter_arguments`.
        memory_bytes: limit of a job's data, or None.
        started_s: what the clock starts at (a resumed run continues where it stopped).
        waiting: is called with one line when another run holds the machine.
    """

    def __init__(
        self,
        root: Path,
        *,
        meter: tuple[str, ...] = (),
        memory_bytes: int | None = None,
        started_s: float = 0.0,
        waiting: Callable[[str], None] | None = None,
    ) -> None:
        self._root = root.resolve()
        self._meter_args = meter
        self._memory = memory_bytes
        self._epoch = time.monotonic() - started_s
        self._now = started_s
        self._waiting = waiting
        self._server: subprocess.Popen[bytes] | None = None
        self._lines: Lines | None = None
        self._meter: subprocess.Popen[bytes] | None = None
        self._preload: tuple[str, ...] = _PRELOAD
        # a Unix socket's path is limited to some 100 bytes: keep it out of the run folder
        self._scratch = tempfile.TemporaryDirectory(prefix="autotune-")
        self._logs = self._root / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._count = 0
        self._guard: PowerGuard | None = None
        self._waited_for = ""

    # -- Bridge ---------------------------------------------------------------------------

    def run(self, job: Job[A], *, timeout_s: float, on_report: OnReport | None = None) -> Result[A]:
        lock = self._machine_lock() if isinstance(job, _TIMED) else contextlib.nullcontext()
        with lock:
            started = time.monotonic()
            self._count += 1
            refused = self._set_power(job)
            result: Result[Any]
            if refused is not None:
                result = Result(failure=Failure(kind="unsupported", message=refused))
            elif isinstance(job, jobs.PowerRange):
                result = self._power_range()
            elif isinstance(job, jobs.Sources):
                result = self._sources()
            elif isinstance(job, jobs.Measure):
                result = self._measure(self._with_meter(job), timeout_s)
            else:
                result = self._serve(self._with_meter(job), timeout_s, on_report)
        self._now = time.monotonic() - self._epoch
        wall = time.monotonic() - started
        return msgspec.structs.replace(result, wall_s=wall, finished_s=self._now)

    def now(self) -> float:
        return self._now

    def preload(self, names: tuple[str, ...]) -> None:
        new = tuple(name for name in names if name not in self._preload)
        if not new:
            return
        self._preload += new
        if self._server is not None:
            try:
                self._send({"preload": new})
                self._receive(60.0)
            except WorkerError:  # one of them ends the server
                self._preload = self._preload[: -len(new)]
                self._stop_server()

    def close(self) -> None:
        self._stop_server()
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        if self._meter is not None:
            processes.kill_tree(self._meter.pid)
            self._meter.wait()
            _close(self._meter.stdout)
            self._meter = None
        self._scratch.cleanup()

    # -- power limits -------------------------------------------------------------------------

    def _power_range(self) -> Result[Any]:
        guard = self._power_guard()
        low_w, high_w = guard.range_w or (None, None)
        low_hz, high_hz = guard.range_hz or (None, None)
        return Result(
            answer=jobs.PowerLimits(
                low_w=low_w,
                high_w=high_w,
                reason=guard.reason,
                low_hz=low_hz,
                high_hz=high_hz,
                clock_reason=guard.clock_reason,
            )
        )

    def _power_guard(self) -> PowerGuard:
        if self._guard is None:
            self._guard = PowerGuard(_lock_folder() / "power-limits.json")
        return self._guard

    def _set_power(self, job: Job[Any]) -> str | None:
        """Set the GPUs' limits to the recipe's, or restore them; returns why that failed, if so."""
        watts = clock_hz = None
        if isinstance(job, jobs.Train | jobs.Throughput):
            watts, clock_hz = job.recipe.power_limit_w, job.recipe.clock_hz
        if watts is None and clock_hz is None and self._guard is None:
            return None
        try:
            self._power_guard().limit(watts, clock_hz)
        except WorkerError as error:
            return str(error)
        return None

    # -- the worker server ----------------------------------------------------------------

    def _serve(self, job: Job[Any], timeout_s: float, on_report: OnReport | None) -> Result[Any]:
        self._start_server()
        name = f"{self._count:04d}-{type(job).__name__.lower()}.log"
        message = {
            "job": json.loads(codec.encode(job)),
            "timeout_s": timeout_s,
            "log": str(self._logs / name),
            "memory_bytes": self._memory,
            "alone": isinstance(job, _TIMED),
        }
        reports: list[tuple[float, float]] = []
        deadline = time.monotonic() + timeout_s + _GRACE_S
        try:
            self._send(message)
            while (message := self._receive(deadline - time.monotonic()))["event"] != "done":
                step, value = float(message["step"]), float(message["value"])
                reports.append((step, value))
                self._now = time.monotonic() - self._epoch
                go = on_report is None or on_report(step, value)
                self._send_line(b"go" if go else b"stop")
        except WorkerError as error:
            self._stop_server()
            return Result(failure=Failure(kind="crash", message=str(error)))
        return _result(message, tuple(reports))

    def _start_server(self) -> None:
        """Start the server where there is none, or it has died between two jobs."""
        if self._server is not None and self._server.poll() is None:
            return
        self._stop_server()
        with (self._logs / "server.log").open("ab") as log:
            self._server = _spawn(
                ("autotune.worker", str(self._root), *self._preload),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._server.stdout is not None
        self._lines = Lines(self._server.stdout)
        self._receive(120.0)

    def _stop_server(self) -> None:
        if self._server is None:
            return
        processes.kill_tree(self._server.pid)
        self._server.wait()
        _close(self._server.stdin)
        _close(self._server.stdout)
        self._server = None

    def _send(self, message: dict[str, Any]) -> None:
        self._send_line(json.dumps(message).encode())

    def _send_line(self, line: bytes) -> None:
        assert self._server is not None
        assert self._server.stdin is not None
        try:
            self._server.stdin.write(line + b"\n")
            self._server.stdin.flush()
        except BrokenPipeError:
            raise WorkerError("the worker server ended by itself") from None

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        assert self._lines is not None
        line = self._lines.next_within(timeout_s)
        if line is None:
            log = self._logs / "server.log"
            tail = log.read_text(errors="replace")[-500:] if log.exists() else ""
            raise WorkerError(f"the worker server ended or is stuck. {tail}".strip())
        message: dict[str, Any] = json.loads(line)
        return message

    # -- measurement and metering ---------------------------------------------------------

    def _measure(self, job: jobs.Measure, timeout_s: float) -> Result[Any]:
        name = f"{self._count:04d}-measure"
        job_file, out, log = (
            self._logs / f"{name}.{end}" for end in ("job.json", "out.json", "log")
        )
        job_file.write_bytes(codec.encode(job))
        env = dict(os.environ) | _thread_variables(job.threads)
        env.setdefault("TORCHINDUCTOR_CACHE_DIR", str(self._root / "cache" / "inductor"))
        with log.open("wb") as sink:
            command = ("autotune.worker.measure.measure", job_file, self._root, out)
            process = _spawn(command, stdout=sink, stderr=sink, env=env)
        try:
            ended = processes.wait(process, timeout_s)
        finally:
            if process.poll() is None:
                processes.kill_tree(process.pid)
                process.wait()
        if not ended:
            return Result(failure=_failure("hang", "no answer within its time limit", log))
        if process.returncode != 0 or not out.exists():
            return Result(failure=_measure_failure(process.returncode, log))
        answer = codec.decode(out.read_bytes(), jobs.Measured)
        job_file.unlink()
        out.unlink()
        return Result(
            answer=answer,
            work_s=answer.launch.work_s,
            cpu_s=answer.launch.cpu_s,
            peak_memory_bytes=answer.launch.peak_memory_bytes,
        )

    def _sources(self) -> Result[Any]:
        self._start_meter()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(self._socket)
            client.sendall(b'{"ask": "sources"}\n')
            with client.makefile("rb") as stream:
                answer = json.loads(stream.readline())
        sources = msgspec.convert(answer["sources"], tuple[EnergySource, ...])
        return Result(answer=jobs.EnergySources(sources=sources))

    @property
    def _socket(self) -> str:
        return str(Path(self._scratch.name) / "meter.sock")

    def _start_meter(self) -> None:
        if self._meter is not None and self._meter.poll() is None:
            return
        command = ("autotune.worker.energy.meter_server", "--socket", self._socket)
        with (self._logs / "meter.log").open("ab") as log:
            self._meter = _spawn((*command, *self._meter_args), stdout=subprocess.PIPE, stderr=log)
        assert self._meter.stdout is not None
        if Lines(self._meter.stdout).next_within(30.0) != b"ready":
            text = (self._logs / "meter.log").read_text(errors="replace")[-500:]
            raise WorkerError(f"the meter process did not start. {text}".strip())

    def _with_meter(self, job: J) -> J:
        """The job; one that measures energy with the path of the meter process's socket."""
        if isinstance(job, _METERED) and job.meter is not None:
            self._start_meter()
            return msgspec.structs.replace(job, meter=self._socket)
        return job

    @contextlib.contextmanager
    def _machine_lock(self) -> Iterator[None]:
        """Held while something is timed, so that two runs never time at once on the same cores."""
        with (_lock_folder() / "cores").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = file.read().strip() or "another run"
                if self._waiting is not None and owner != self._waited_for:
                    self._waiting(f"waiting for {owner}, which is timing on these cores")
                self._waited_for = owner
                fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            file.truncate()
            file.write(f"process {os.getpid()}")
            file.flush()
            yield


def _spawn(
    module_and_arguments: Sequence[str | Path],
    *,
    stdout: int | IO[bytes],
    stderr: IO[bytes],
    stdin: int = subprocess.DEVNULL,
    env: dict[str, str] | None = None,
) -> "subprocess.Popen[bytes]":
    """Start ``python -m`` with these arguments, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", *module_and_arguments],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=env,
        start_new_session=True,
    )


def _lock_folder() -> Path:
    """Folder of locks that all runs of this user share."""
    folder = Path(tempfile.gettempdir()) / f"autotune-locks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _thread_variables(threads: int) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


def _result(message: dict[str, Any], reports: tuple[tuple[float, float], ...]) -> Result[Any]:
    """The result that the server's ``done`` message describes."""
    fields = {k: message[k] for k in ("cpu_s", "peak_memory_bytes")}
    for name in ("answer", "failure"):
        if message.get(name) is not None:
            fields[name] = message[name]
    fields["work_s"] = message.get("work_s", message["wall_s"])
    data = json.dumps(fields | {"reports": reports}).encode()
    return codec.decode(data, AnyResult, what="a worker's answer")


def _failure(kind: str, message: str, log: Path) -> Failure:
    return Failure(kind=kind, message=message, log=_tail(log))


def _measure_failure(status: int, log: Path) -> Failure:
    lines = _tail(log).splitlines() or [f"status {status}"]
    if status == -9:
        return _failure("killed", "the process was ended by SIGKILL", log)
    if status < 0:
        return _failure("crash", f"the process was ended by signal {-status}", log)
    kind = "oom" if status == _OUT_OF_MEMORY or "out of memory" in lines[-1].lower() else "error"
    return _failure(kind, lines[-1], log)


def _tail(log: Path) -> str:
    return log.read_bytes()[-2000:].decode(errors="replace").strip() if log.exists() else ""


def _close(stream: IO[bytes] | None) -> None:
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.close()
