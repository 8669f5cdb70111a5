"""Sets the power limit of the GPUs in use and their highest clock, and puts both back however the
run ends.

    owner --{"watts": 200, "hz": 1.2e9}--> guard --> NVML, what there was noted in files first
          <--{"watts": 200, ...}----------   stdin closed (the owner ended, by kill -9 too), a
                                             signal, or a null: as it was, files removed

    python -m autotune.worker.energy.power_guard FILE

A process of its own, in its own session, so that nothing that ends a run ends it first.  Should it
be killed itself, the file of originals stays, and the next guard puts them back before all else
(a reboot does so too).  Limits are set only with ``--allow-power-limit``.  Torch-free.

Boards are those that CUDA names by UUID, or the machine's only one.  Tested with a made-up NVML,
never yet on a GPU.
"""

import json
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from autotune.meters import Fault
from autotune.meters.nvml import visible
from autotune.worker.energy.clocks import Clocks
from autotune.worker.energy.noted import Noted


class Limits:
    """The boards' limits, in watts.

    Args:
        nvml: the binding, or one that is made up.
        file: where the original limits are noted.
    """

    def __init__(self, nvml: Any, file: Path) -> None:
        self._nvml = nvml
        nvml.nvmlInit()
        self._noted = Noted(file, self._put, nvml.NVMLError, "the power limit")
        found = visible(nvml)
        self.reason = found.detail if isinstance(found, Fault) else None
        self.uuids = () if isinstance(found, Fault) else found

    def range_w(self) -> tuple[float, float]:
        """What every board allows.

        Raises:
            NVMLError: a board does not tell.
        """
        pairs = [
            self._nvml.nvmlDeviceGetPowerManagementLimitConstraints(self._handle(uuid))
            for uuid in self.uuids
        ]
        return max(low for low, _ in pairs) / 1000, min(high for _, high in pairs) / 1000

    def try_permission(self) -> None:
        """Set each board's limit to what it is.

        Raises:
            NVMLError: it is not permitted.
        """
        for handle in map(self._handle, self.uuids):
            now = self._nvml.nvmlDeviceGetPowerManagementLimit(handle)
            self._nvml.nvmlDeviceSetPowerManagementLimit(handle, now)

    def set(self, watts: float) -> None:
        """Limit every board, after noting what it had.

        Raises:
            NVMLError: it is not permitted, or outside of what a board allows.
        """
        ask = self._nvml.nvmlDeviceGetPowerManagementLimit
        self._noted.note(lambda: {uuid: ask(self._handle(uuid)) for uuid in self.uuids})
        for uuid in self.uuids:
            self._put(uuid, round(1000 * watts))

    def restore(self) -> None:
        """Put every board's limit back; what was noted is kept for a board that refuses."""
        self._noted.put_back()

    def _put(self, uuid: str, milliwatts: int) -> None:
        self._nvml.nvmlDeviceSetPowerManagementLimit(self._handle(uuid), milliwatts)

    def _handle(self, uuid: str) -> Any:
        return self._nvml.nvmlDeviceGetHandleByUUID(uuid)


def serve(limits: Limits, clocks: Clocks, lines: TextIO, out: TextIO, nvml: Any) -> None:
    """Answer each line until there are no more; then everything is as before."""
    try:
        for line in lines:
            asked: dict[str, Any] = json.loads(line)
            try:
                _apply(limits, asked["watts"])
                _apply(clocks, asked["hz"])
                answer = asked
            except nvml.NVMLError as error:
                _restore(limits, clocks)
                answer = {"error": str(error)}
            print(json.dumps(answer), file=out, flush=True)
    finally:
        _restore(limits, clocks)


def _apply(what: Limits | Clocks, value: float | None) -> None:
    if value is None:
        what.restore()
    else:
        what.set(float(value))


def _restore(limits: Limits, clocks: Clocks) -> None:
    try:
        limits.restore()
    finally:
        clocks.restore()


def hello(limits: Limits, clocks: Clocks, nvml: Any) -> dict[str, Any]:
    """What a guard says first: the ranges of limits and clocks, or why none can be set.

    Permission is tried by setting the limit that is set already, and by a lock that locks nothing.
    """
    if limits.reason is not None:
        return {"error": limits.reason}
    try:
        low, high = limits.range_w()
        limits.try_permission()
        said: dict[str, Any] = {"range_w": [low, high]}
    except nvml.NVMLError as error:
        return {"error": f"NVML answers {error}: setting power limits needs the administrator"}
    try:
        said["range_hz"] = list(clocks.range_hz())
        clocks.try_permission()
    except nvml.NVMLError as error:
        said.pop("range_hz", None)
        said["clock_error"] = f"NVML answers {error}: these boards' clocks cannot be locked"
    return said


def main(file: str, nvml: Any = None) -> int:
    """Serve stdin; returns the exit status."""
    nvml = nvml or import_module("pynvml")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        limits = Limits(nvml, Path(file))
        clocks = Clocks(nvml, Path(f"{file}.clocks"), limits.uuids)
    except nvml.NVMLError as error:
        print(json.dumps({"error": f"NVML answers {error}"}), flush=True)
        return 1
    print(json.dumps(hello(limits, clocks, nvml)), flush=True)
    serve(limits, clocks, sys.stdin, sys.stdout, nvml)
    return 0


def _leave(number: int, frame: object) -> None:
    """A signal ends the reading of stdin; what is set is put back on the way out."""
    del number, frame
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
