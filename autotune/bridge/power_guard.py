"""Client of the power guard process (`worker.energy.power_guard`).

    guard = PowerGuard(file)     reads which limits and clocks the boards allow, or why none
    guard.limit(200.0, 1.2e9)    before a job that needs it; None restores the originals
    guard.close()                closes its stdin: everything is restored

Whatever ends this process closes the pipe, and the guard then restores the limits by itself.
"""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from autotune.errors import WorkerError
from autotune.processes import Lines

_PATIENCE_S = 15.0
_COMMAND = (sys.executable, "-m", "autotune.worker.energy.power_guard")


class PowerGuard:
    """A running guard.  ``range_w`` (watts) is None where ``reason`` says why, ``range_hz`` (hertz)
    where ``clock_reason`` does.

    Args:
        file: where the guard saves the original limits.
        command: starts the guard.
    """

    def __init__(self, file: Path, command: tuple[str, ...] = _COMMAND) -> None:
        self._process = subprocess.Popen(
            [*command, str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._lines = Lines(self._process.stdout)
        self._now: tuple[float | None, float | None] = (None, None)
        greeting = self._answer()
        self.reason: str | None = greeting.get("error")
        self.range_w = _range(greeting.get("range_w"))
        self.range_hz = _range(greeting.get("range_hz"))
        self.clock_reason: str | None = greeting.get("clock_error", self.reason)

    def limit(self, watts: float | None, hz: float | None = None) -> None:
        """Set every board's power limit and highest clock; None restores the original.

        Raises:
            WorkerError: a board refuses; everything has been restored.
        """
        if (watts, hz) == self._now:
            return
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"watts": watts, "hz": hz}).encode() + b"\n")
            self._process.stdin.flush()
            answer = self._answer()
        except BrokenPipeError:
            answer = {"error": "the power guard has ended"}
        if "error" in answer:
            self._now = (None, None)
            wanted = "as it was" if watts is None else f"to {watts:g} W"
            wanted += "" if hz is None else f" and {hz / 1e9:g} GHz"
            raise WorkerError(f"the power limit cannot be set {wanted}: {answer['error']}")
        self._now = (watts, hz)

    def close(self) -> None:
        """Let it restore everything and end."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        line = self._lines.next_within(_PATIENCE_S)
        if line is None:
            return {"error": "the power guard does not answer"}
        answer: dict[str, Any] = json.loads(line)
        return answer


def _range(pair: list[float] | None) -> tuple[float, float] | None:
    return None if pair is None else (float(pair[0]), float(pair[1]))
