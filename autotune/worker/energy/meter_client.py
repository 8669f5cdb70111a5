"""Client of the meter process: open a window, close it, get joules or a reason.

    with MeterClient(path) as meter:
        token = meter.open()
        ...
        window = meter.close(token)

``open(idle_s=1.0)`` waits before and after the window to measure the idle machine's power: the
answer then has a dynamic energy besides the total.  The meter process drops the windows of a client
that disconnects.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from autotune.errors import WorkerError
from autotune.meters import _baseline
from autotune.records.measurement import EnergySource, EnergyWindow

_PATIENCE_S = 10.0


class MeterClient:
    """A connection to the meter process's socket.

    Raises:
        WorkerError: the meter process does not answer (every method raises this too).
    """

    def __init__(self, path: str | Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_PATIENCE_S)
        try:
            with address(Path(path)) as short:
                self._socket.connect(short)
        except OSError as error:
            self._socket.close()
            raise WorkerError(f"the meter process at {path} does not answer: {error}") from None
        self._file = self._socket.makefile("rb")
        self._idle: dict[int, tuple[float, EnergyWindow]] = {}

    def sources(self) -> tuple[EnergySource, ...]:
        """The meter process's energy sources; unavailable ones have a reason."""
        return msgspec.convert(self._ask(ask="sources")["sources"], tuple[EnergySource, ...])

    def open(self, *, idle_s: float = 0.0, boards: bool = True) -> int:
        """Start a window and return its token; wait for a GPU's pending work first.

        Args:
            idle_s: seconds before and after the window that are spent idle and measured, for the
                dynamic energy; 0 for none.
            boards: whether the energy of GPUs is included.
        """
        before = self._rest(idle_s) if idle_s > 0 else None
        token = int(self._ask(ask="open", tree=_tree(), boards=boards)["token"])
        if before is not None:
            self._idle[token] = idle_s, before
        return token

    def close(self, token: int) -> EnergyWindow:
        """End the window of ``token``."""
        work = msgspec.convert(self._ask(ask="close", token=token)["window"], EnergyWindow)
        if token not in self._idle:
            return work
        idle_s, before = self._idle.pop(token)
        return _baseline.dynamic(work, before, self._rest(idle_s))

    def disconnect(self) -> None:
        """Close the connection; windows that are still open are dropped."""
        self._file.close()
        self._socket.close()

    def __enter__(self) -> "MeterClient":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.disconnect()

    def _rest(self, idle_s: float) -> EnergyWindow:
        token = self.open()
        time.sleep(idle_s)
        return self.close(token)

    def _ask(self, **request: Any) -> dict[str, Any]:
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            line = self._file.readline()
        except OSError as error:
            raise WorkerError(f"the meter process does not answer: {error}") from None
        if not line.endswith(b"\n"):
            raise WorkerError("the meter process ended while it was asked")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"the meter process refused: {answer['error']}")
        return answer


def _tree() -> int:
    """Process id at the root of the tree that does the work: of several ranks their parent."""
    ranks = os.environ.get("WORLD_SIZE", "1")
    return os.getppid() if ranks.isdigit() and int(ranks) > 1 else os.getpid()


@contextlib.contextmanager
def address(path: Path) -> Iterator[str]:
    """A socket path of at most 107 bytes, the limit; a longer one goes through its open folder."""
    if len(os.fsencode(path)) < 100:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
