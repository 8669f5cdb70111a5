"""Child processes that cannot be left behind.

    owner --PDEATHSIG--> server (subreaper) --PDEATHSIG--> job --> ranks ...

Linux only features are used where there are: elsewhere `die_with_parent` and
`become_subreaper` do nothing, and `kill_tree` still ends every descendant.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, BinaryIO

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def die_with_parent() -> None:
    """Ask the kernel to SIGKILL this process when the thread that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def become_subreaper() -> None:
    """Orphaned descendants become this process's children, so that it can end them."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


@contextlib.contextmanager
def interrupts() -> Iterator[list[int]]:
    """Ctrl-C while this is open: KeyboardInterrupt, as ever, and a word in the list, for where
    what was under way turned it into an error of its own.
    """
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def heard(number: int, _: object) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, heard)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def kill_tree(pid: int, *, itself: bool = True) -> int:
    """SIGKILL every descendant of ``pid`` (and ``pid``); repeats until none is left.

    Sessions and process groups do not matter, since the tree is walked by parent.
    Returns the number of processes that were signalled.
    """
    import psutil

    killed = 0
    for _ in range(20):
        try:
            root = psutil.Process(pid)
            family = root.children(recursive=True) + ([root] if itself else [])
        except psutil.NoSuchProcess:
            return killed
        alive = [p for p in family if _alive(p)]
        if not alive:
            return killed
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                killed += 1
        time.sleep(0.01)
    return killed


def _alive(process: Any) -> bool:
    import psutil

    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def forked(body: Callable[[BinaryIO, BinaryIO], None]) -> tuple[int, BinaryIO, BinaryIO]:
    """Fork a child that runs ``body(from us, to us)``, which must not return.

    Returns:
        Its process id, the pipe down to it and the pipe up from it.
    """
    up_read, up_write = os.pipe()
    down_read, down_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(up_read)
        os.close(down_write)
        body(os.fdopen(down_read, "rb"), os.fdopen(up_write, "wb"))
        os._exit(1)
    os.close(up_write)
    os.close(down_read)
    return pid, os.fdopen(down_write, "wb"), os.fdopen(up_read, "rb")


def wait(process: "subprocess.Popen[bytes]", timeout_s: float) -> bool:
    """Block until a child has ended; False when it has not in time.

    ``Popen.wait`` with a timeout polls every 50 ms, which is half of what a trial may cost.
    """
    if hasattr(os, "pidfd_open"):
        try:
            descriptor = os.pidfd_open(process.pid)
        except OSError:  # an old kernel, or already reaped
            descriptor = None
        if descriptor is not None:
            try:
                select.select([descriptor], [], [], max(0.0, timeout_s))
            finally:
                os.close(descriptor)
            return process.poll() is not None
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return False
    return True


class Lines:
    """Lines of a pipe, read without a buffer that `select` cannot see."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream  # keeps the descriptor open
        self._buffer = b""

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def pending(self) -> bool:
        return b"\n" in self._buffer

    def next(self) -> bytes | None:
        """Block for one line, without its end; None when the other side has closed."""
        while not self.pending:
            chunk = os.read(self.fileno(), 1 << 16)
            if not chunk:
                return None
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def next_within(self, timeout_s: float) -> bytes | None:
        """Like `next`; None also when nothing came in time."""
        deadline = time.monotonic() + timeout_s
        while not self.pending:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self], [], [], left)[0]:
                return None
            chunk = os.read(self.fileno(), 1 << 16)
            if not chunk:
                return None
            self._buffer += chunk
        return self.next()


def ready(streams: tuple[Lines, ...], timeout_s: float) -> list[Lines]:
    """Those that have a line or can be read without blocking."""
    pending = [s for s in streams if s.pending]
    return pending or select.select(list(streams), [], [], timeout_s)[0]
