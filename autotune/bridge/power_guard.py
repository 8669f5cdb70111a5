"""The run's side of the power guard: started once, told limits, closed with the bridge.

    guard = Guard(file)          says what limits and clocks the boards allow, or why none
    guard.limit(200.0, 1.2e9)    before a job that asks for it; None: as it was
    guard.close()                its stdin closes: everything is put back

Whatever ends this process closes the pipe, and the guard puts the limits back by itself.
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


class Guard:
    """A running guard.  ``range_w`` is None where ``reason`` says why, ``range_hz`` where
    ``clock_reason`` does.
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
        said = self._answer()
        self.reason: str | None = said.get("error")
        found = said.get("range_w")
        self.range_w = (float(found[0]), float(found[1])) if found else None
        clocks = said.get("range_hz")
        self.range_hz = (float(clocks[0]), float(clocks[1])) if clocks else None
        self.clock_reason: str | None = said.get("clock_error", self.reason)

    def limit(self, watts: float | None, hz: float | None = None) -> None:
        """Set every board's limit and highest clock, or put them back.

        Raises:
            WorkerError: a board refuses; everything has been put back.
        """
        if (watts, hz) == self._now:
            return
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"watts": watts, "hz": hz}).encode() + b"\n")
            self._process.stdin.flush()
            said = self._answer()
        except BrokenPipeError:
            said = {"error": "the power guard has ended"}
        if "error" in said:
            self._now = (None, None)
            wanted = "as it was" if watts is None else f"to {watts:g} W"
            wanted += "" if hz is None else f" and {hz / 1e9:g} GHz"
            raise WorkerError(f"the power limit cannot be set {wanted}: {said['error']}")
        self._now = (watts, hz)

    def close(self) -> None:
        """Let it put everything back and end."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        line = self._lines.next_within(_PATIENCE_S)
        if line is None:
            return {"error": "the power guard does not answer"}
        said: dict[str, Any] = json.loads(line)
        return said
