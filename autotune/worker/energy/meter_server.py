"""The meter process: the only one that reads energy counters, at the ends of windows.

    python -m autotune.worker.energy.meter_server --socket PATH [--powercap-root DIR]
                                    [--cuda [UUID,...]] [--all]

    client --{"ask": "sources" | "open" | "close", ...}--> Unix socket --> meters
           <--{"sources": [...]} | {"token": n} | {"window": {...}} | {"error": text}--

One JSON line a request and one an answer.  Several clients may hold windows at once; all
share the readings.  Between the ends of a window nothing is read except, seldom, to keep
a wrap of the counter unambiguous, and power where a sensor has no energy counter.  Torch-free.
Prints ``ready`` when it listens, and ends with its parent, at SIGTERM, or when its standard
input (if a pipe) is closed.

The total has the parts of the machine (processor, memory, boards) that can be read, each domain
once however many ranks run; where no part can, the first sensor that sees the whole machine.
"""

import argparse
import contextlib
import json
import os
import selectors
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from autotune import plugins
from autotune.meters import (
    Meter,
    MeterTools,
    Reading,
    calibrate,
    code,
    declared,
    edge,
    of_board,
    window,
)
from autotune.records import codec
from autotune.records.measurement import Domain, EnergySource, EnergyWindow
from autotune.worker.energy.meter_client import address

_MAX_GAP_S = 10.0
_SHORTEST_GAP_S = 0.2
_POLL_S = 1.0
_ROUNDING_S = 0.04
"""Four clock ticks of CPU time: one at each end of each of two counts."""


class CpuTimes(NamedTuple):
    """CPU seconds so far: busy and total (idle too) of the machine, and of one process tree."""

    busy_s: float
    total_s: float
    tree_s: float


class OpenWindow:
    """The readings so far of a window, one list for each meter."""

    def __init__(
        self, cpu: CpuTimes | None, first: Sequence[Reading], meter_cpu_s: float, *, boards: bool
    ) -> None:
        self.cpu = cpu
        self.boards = boards
        self.meter_cpu_s = meter_cpu_s
        self.readings = [[reading] for reading in first]


class EnergyMonitor:
    """The meters, and the windows that are open.

    Args:
        meters: calibrated ones.
        clock: seconds, monotonic.
        cpu_times: of the machine and the tree of a process id; None where unknown.
        read: reads one meter; its flag says that this closes a window.
        everything: whether `sources` lists what is not part of the total too.
    """

    def __init__(
        self,
        meters: Sequence[Meter],
        clock: Callable[[], float] = time.monotonic,
        cpu_times: Callable[[int], CpuTimes | None] = lambda pid: None,
        read: Callable[[Meter, bool], Reading] = lambda meter, closing: meter.read(),
        *,
        everything: bool = False,
    ) -> None:
        self._meters = tuple(meters)
        self._clock = clock
        self._cpu_times = cpu_times
        self._read = read
        found = [source for meter in self._meters for source in meter.sources()]
        self._counts, self._everything = _counted(found), everything
        self._windows: dict[int, OpenWindow] = {}
        self._next = 1
        self._last_read_s = clock()
        gaps = [gap for gap in (meter.max_gap_s() for meter in self._meters) if gap is not None]
        self.max_gap_s = max(_SHORTEST_GAP_S, min([_MAX_GAP_S, *gaps]))

    def sources(self) -> tuple[EnergySource, ...]:
        """The sources of every meter; readable ones that are not counted only on request."""
        found = (source for meter in self._meters for source in meter.sources())
        return tuple(s for s in found if self._everything or self._useful(s))

    def open(self, pid: int = 0, *, boards: bool = True) -> int:
        """Start a window for the process ``pid`` (0: unknown) and return its token.  Without
        ``boards`` the energy of GPUs is left out.
        """
        token = self._next
        self._next += 1
        cpu, meter_cpu_s = self._cpu_times(pid), time.process_time()
        if not self._windows:
            self._last_read_s = self._clock()
        first = [self._read(meter, False) for meter in self._meters]
        self._windows[token] = OpenWindow(cpu, first, meter_cpu_s, boards=boards)
        return token

    def close(self, token: int, pid: int = 0) -> EnergyWindow:
        """End a window.

        Raises:
            KeyError: no such window is open.
        """
        open_window = self._windows.pop(token)
        domains: list[Domain] = []
        duration_s = 0.0
        for meter, readings in zip(self._meters, open_window.readings, strict=True):
            readings.append(self._read(meter, True))
        after, cpu_s = self._cpu_times(pid), time.process_time() - open_window.meter_cpu_s
        for meter, readings in zip(self._meters, open_window.readings, strict=True):
            counted = (d for d in meter.difference(*readings) if self._counts(d.name))
            domains += (d for d in counted if open_window.boards or not of_board(d.name))
            duration_s = max(duration_s, readings[-1].at_s - readings[0].at_s)
        reasons = [source.reason for source in self.sources() if source.label == "unavailable"]
        return window(
            duration_s,
            domains,
            _foreign(open_window.cpu, after, cpu_s),
            nothing=next(iter(reasons), None),
            meter_cpu_s=cpu_s,
        )

    def _useful(self, source: EnergySource) -> bool:
        measured = source.label.startswith("measured")
        return not measured or any(self._counts(name) for name in source.domains)

    def drop(self, token: int) -> None:
        """Forget a window, as its client is gone."""
        self._windows.pop(token, None)

    def read_if_due(self) -> None:
        """Read the counters if a window is open and a wrap may be near."""
        now = self._clock()
        if not self._windows or now - self._last_read_s < self.max_gap_s:
            return
        self._last_read_s = now
        for place, meter in enumerate(self._meters):
            reading = meter.read()
            for open_window in self._windows.values():
                open_window.readings[place].append(reading)


class Server:
    """Answers requests on one listening socket until `stop`."""

    def __init__(self, listener: socket.socket, monitor: EnergyMonitor) -> None:
        self._monitor = monitor
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._running = True

    def watch(self, file: Any) -> None:
        """Stop at the end of ``file``: the owner's end of a pipe was closed."""

        def read() -> None:
            if not os.read(file.fileno(), 4096):
                self.stop()

        self._selector.register(file, selectors.EVENT_READ, read)

    def stop(self) -> None:
        self._running = False

    def serve(self, alive: Callable[[], bool] = lambda: True) -> None:
        """Answer until `stop` is called or ``alive`` answers False."""
        while self._running and alive():
            for key, _ in self._selector.select(min(_POLL_S, self._monitor.max_gap_s)):
                key.data()
            self._monitor.read_if_due()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket) and key.fileobj is not self._listener:
                key.fileobj.close()
        self._selector.close()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        client = _Client(connection, self._monitor)

        def serve() -> None:
            if not client.serve():
                self._selector.unregister(connection)
                connection.close()

        self._selector.register(connection, selectors.EVENT_READ, serve)


class _Client:
    """One connection and the windows that it holds."""

    def __init__(self, connection: socket.socket, monitor: EnergyMonitor) -> None:
        self._connection = connection
        self._monitor = monitor
        self._tokens: dict[int, int] = {}
        self._buffer = b""
        self._pid = _peer(connection)

    def serve(self) -> bool:
        """Read what there is and answer whole lines; False when the client has gone."""
        try:
            chunk = self._connection.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            chunk = b""
        self._buffer += chunk
        try:
            while b"\n" in self._buffer:
                line, _, self._buffer = self._buffer.partition(b"\n")
                self._connection.sendall(self._answer(line) + b"\n")
        except OSError:
            chunk = b""
        if not chunk:
            for token in self._tokens:
                self._monitor.drop(token)
        return bool(chunk)

    def _answer(self, line: bytes) -> bytes:
        try:
            return self._do(json.loads(line))
        except (ValueError, TypeError, AttributeError) as error:
            return _error(f"not a request: {error}")
        except KeyError as error:
            return _error(f"no window {error} is open here")

    def _do(self, request: dict[str, Any]) -> bytes:
        ask = request.get("ask")
        if ask == "sources":
            parts = [codec.encode(source) for source in self._monitor.sources()]
            return b'{"sources": [' + b", ".join(parts) + b"]}"
        if ask == "open":
            # the ranks of one launch are children of the same parent: their tree is its tree
            tree = request.get("tree", self._pid)
            token = self._monitor.open(tree, boards=request.get("boards", True))
            self._tokens[token] = tree
            return json.dumps({"token": token}).encode()
        if ask == "close":
            token = request.get("token", 0)
            tree = self._tokens.pop(token)
            return b'{"window": ' + codec.encode(self._monitor.close(token, tree)) + b"}"
        raise ValueError(f"ask is {ask!r}, must be sources, open or close")


def meters(tools: MeterTools, *, cuda: bool, everything: bool = False) -> list[Meter]:
    """The plug-ins of ``meters/`` that this machine can use, calibrated.

    GPU meters only where a GPU is in use (``cuda``), and then those of the maker whose boards
    can be read; optional sensors only where there are any.  ``everything`` takes them all, for
    ``autotune doctor``.
    """
    names = [n for n in plugins.names("meters") if cuda or everything or not of_board(n)]
    found: dict[str, Meter] = {n: plugins.load("meters", n).open(tools) for n in names}
    if not everything:
        there = {n: m for n, m in found.items() if not _absent(m)}
        boards = any(of_board(n) for n in there)
        silent = {n for n in found if declared(n, "OPTIONAL") or (boards and of_board(n))}
        found = {n: m for n, m in found.items() if n in there or n not in silent}
    for meter in found.values():
        calibrate(meter, tools.clock)
    return list(found.values())


def cpu_times(pid: int) -> CpuTimes | None:
    """CPU seconds of the machine and of the process tree of ``pid``; None where unreadable."""
    if not pid:
        return None
    machine = psutil.cpu_times()
    total_s = sum(machine[:8])  # after steal come guests, which user time contains
    busy_s = total_s - machine.idle - getattr(machine, "iowait", 0.0)
    tree_s = 0.0
    try:
        root = psutil.Process(pid)
        tree = (root, *root.children(recursive=True))
    except psutil.Error:
        return None
    for process in tree:
        with contextlib.suppress(psutil.Error):  # it ended: its parent counts it now
            tree_s += sum(process.cpu_times()[:4])  # user and system, and those of ended children
    return CpuTimes(busy_s, total_s, tree_s)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve as the command line says, until the owner is gone."""
    args = _parser().parse_args(argv)
    tools = MeterTools()
    if args.powercap_root is not None:
        tools = tools._replace(powercap=args.powercap_root, origin=args.origin)
    if args.cuda:
        tools = tools._replace(devices=tuple(filter(None, args.cuda.split(","))) or None)
    found = meters(tools, cuda=args.cuda is not None, everything=args.all)
    monitor = EnergyMonitor(
        found,
        cpu_times=cpu_times,
        read=lambda meter, closing: edge(meter, closing=closing),
        everything=args.all,
    )
    parent = os.getppid()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        args.socket.unlink(missing_ok=True)  # left by a meter process that was killed
        listener.bind(stack.enter_context(address(args.socket)))
        stack.callback(args.socket.unlink, missing_ok=True)
        args.socket.chmod(0o600)
        listener.listen()
        server = Server(listener, monitor)
        if stat.S_ISFIFO(os.fstat(0).st_mode):
            server.watch(sys.stdin)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the owner decides when a run ends
        print("ready", flush=True)
        server.serve(alive=lambda: os.getppid() == parent)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m autotune.worker.energy.meter_server")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--powercap-root", type=Path)
    parser.add_argument("--origin", choices=("host", "simulated"), default="host")
    parser.add_argument("--cuda", nargs="?", const="", metavar="UUID,...")
    parser.add_argument("--all", action="store_true")
    return parser


def _foreign(
    first: CpuTimes | None, last: CpuTimes | None, meter_cpu_s: float = 0.0
) -> float | None:
    """Share of the machine's CPU time in the window that neither the client's process tree nor this
    meter process used.
    """
    if first is None or last is None or last.total_s <= first.total_s:
        return None
    ours = (last.tree_s - first.tree_s) + meter_cpu_s + _ROUNDING_S
    foreign = (last.busy_s - first.busy_s) - ours
    return min(1.0, max(0.0, foreign / (last.total_s - first.total_s)))


def _counted(sources: Sequence[EnergySource]) -> Callable[[str], bool]:
    """Whether a domain is part of the total: see the module."""
    readable = [s for s in sources if s.label.startswith("measured")]
    wholes = [s for s in readable if s.scope == "machine"]
    if wholes and not any(s.scope == "parts" for s in readable):
        one = min(wholes, key=lambda s: declared(s.name, "WHOLE"))
        counted = frozenset(one.domains)
        return lambda name: name in counted
    others = frozenset(name for s in sources if s.scope != "parts" for name in s.domains)
    return lambda name: name not in others


def _absent(meter: Meter) -> bool:
    return all(code(source.reason) == "no_interface" for source in meter.sources())


def _peer(connection: socket.socket) -> int:
    """The client's process id; 0 where the system does not say."""
    if not hasattr(socket, "SO_PEERCRED"):
        return 0
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", data)[0]
    return pid


def _error(text: str) -> bytes:
    return json.dumps({"error": text}).encode()


if __name__ == "__main__":
    main()
