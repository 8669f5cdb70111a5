"""Sets power limit and highest clock of the GPUs in use; restores both however the run ends.

    owner --{"watts": 200, "hz": 1.2e9}--> guard --> NVML, the originals saved to files first
          <--{"watts": 200, ...}----------   stdin closed (the owner ended, by kill -9 too), a
                                             signal, or null: originals restored, files removed

    python -m autotune.worker.energy.power_guard FILE

A process of its own, in its own session, so that nothing that ends a run ends it first.  Should it
be killed itself, the files stay, and the next guard restores from them before all else (a reboot
restores them too).  Limits are set only with ``--allow-power-limit``.  Torch-free.

Boards are those that CUDA names by UUID, or the machine's only one.  NVML reports no lock of the
clocks that is already there, so a lock that an administrator has set before is taken off too.
Tested with a made-up NVML, never yet on a GPU.
"""

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from autotune.meters import Fault
from autotune.meters.nvml import visible

_MHZ = 1e6


class SavedState:
    """The boards' original values, in a file until they are restored.

    A killed process leaves the file, and the next `SavedState` of it restores everything first.

    Args:
        file: ``{"GPU-uuid": original value}``, written once, as a whole.
        undo: restores one board's value.
        refused: what ``undo`` raises where the board does not allow it.
        what: the name of the values in messages.
    """

    def __init__(
        self,
        file: Path,
        undo: Callable[[str, Any], object],
        refused: type[Exception],
        what: str,
    ) -> None:
        self._file, self._undo, self._refused, self._what = file, undo, refused, what
        with contextlib.suppress(json.JSONDecodeError):
            self.restore()  # what a killed process has left

    def save(self, originals: Callable[[], Mapping[str, Any]]) -> None:
        """Write the originals, unless they are saved already."""
        if self._file.exists():
            return
        scratch = self._file.with_name(self._file.name + ".part")
        scratch.write_text(json.dumps(originals()))
        scratch.replace(self._file)

    def restore(self) -> None:
        """Undo everything; the file keeps what a board refuses."""
        if not self._file.exists():
            return
        left = {}
        for uuid, original in json.loads(self._file.read_text()).items():
            try:
                self._undo(uuid, original)
            except self._refused as error:
                print(f"{self._what} of {uuid} cannot be restored: {error}", file=sys.stderr)
                left[uuid] = original
        if left:
            self._file.write_text(json.dumps(left))
        else:
            self._file.unlink()


class PowerLimits:
    """The boards' power limits, in watts.

    Args:
        nvml: the binding, or a stand-in for it.
        file: where the original limits are saved.
    """

    def __init__(self, nvml: Any, file: Path) -> None:
        self._nvml = nvml
        nvml.nvmlInit()
        self._saved = SavedState(file, self._set, nvml.NVMLError, "the power limit")
        found = visible(nvml)
        self.reason = found.detail if isinstance(found, Fault) else None
        self.uuids = () if isinstance(found, Fault) else found

    def range_w(self) -> tuple[float, float]:
        """Lowest and highest limit that every board allows.

        Raises:
            NVMLError: a board does not report it.
        """
        pairs = [
            self._nvml.nvmlDeviceGetPowerManagementLimitConstraints(self._handle(uuid))
            for uuid in self.uuids
        ]
        return max(low for low, _ in pairs) / 1000, min(high for _, high in pairs) / 1000

    def try_permission(self) -> None:
        """Set each board's limit to its present value.

        Raises:
            NVMLError: it is not permitted.
        """
        for handle in map(self._handle, self.uuids):
            now = self._nvml.nvmlDeviceGetPowerManagementLimit(handle)
            self._nvml.nvmlDeviceSetPowerManagementLimit(handle, now)

    def set(self, watts: float) -> None:
        """Limit every board, after saving its original limit.

        Raises:
            NVMLError: it is not permitted, or outside of what a board allows.
        """
        get = self._nvml.nvmlDeviceGetPowerManagementLimit
        self._saved.save(lambda: {uuid: get(self._handle(uuid)) for uuid in self.uuids})
        for uuid in self.uuids:
            self._set(uuid, round(1000 * watts))

    def restore(self) -> None:
        """Restore every board's limit; the original of a board that refuses stays saved."""
        self._saved.restore()

    def _set(self, uuid: str, milliwatts: int) -> None:
        self._nvml.nvmlDeviceSetPowerManagementLimit(self._handle(uuid), milliwatts)

    def _handle(self, uuid: str) -> Any:
        return self._nvml.nvmlDeviceGetHandleByUUID(uuid)


class ClockLocks:
    """The highest graphics clock of the boards, in hertz (NVML's are in MHz).

    Args:
        nvml: the binding, or a stand-in for it.
        file: where the boards are saved whose clocks are locked.
        uuids: of the boards.
    """

    def __init__(self, nvml: Any, file: Path, uuids: tuple[str, ...]) -> None:
        self._nvml, self._uuids = nvml, uuids
        self._saved = SavedState(file, self._unlock, nvml.NVMLError, "the lock on the clocks")

    def range_hz(self) -> tuple[float, float]:
        """Lowest and highest clock that every board has.

        Raises:
            NVMLError: a board does not report it.
        """
        pairs = [self._supported_mhz(uuid) for uuid in self._uuids]
        return max(low for low, _ in pairs) * _MHZ, min(high for _, high in pairs) * _MHZ

    def try_permission(self) -> None:
        """Lock each board's clocks to its whole range, and take the lock off.

        Raises:
            NVMLError: it is not permitted, or the board is too old.
        """
        for uuid in self._uuids:
            self._lock(uuid, self._supported_mhz(uuid)[1])
            self._unlock(uuid, None)

    def set(self, hz: float) -> None:
        """Let no board's clock rise above ``hz``, after saving that it is locked.

        Raises:
            NVMLError: it is not permitted, or outside of what a board has.
        """
        self._saved.save(lambda: dict.fromkeys(self._uuids))
        for uuid in self._uuids:
            self._lock(uuid, round(hz / _MHZ))

    def restore(self) -> None:
        """Take every lock off; a board that refuses stays saved."""
        self._saved.restore()

    def _unlock(self, uuid: str, _: object) -> None:
        self._nvml.nvmlDeviceResetGpuLockedClocks(self._handle(uuid))

    def _lock(self, uuid: str, mhz: int) -> None:
        low, _ = self._supported_mhz(uuid)
        self._nvml.nvmlDeviceSetGpuLockedClocks(self._handle(uuid), min(low, mhz), mhz)

    def _supported_mhz(self, uuid: str) -> tuple[int, int]:
        """The lowest and highest graphics clock at the highest memory clock."""
        handle = self._handle(uuid)
        memory = max(self._nvml.nvmlDeviceGetSupportedMemoryClocks(handle))
        found = self._nvml.nvmlDeviceGetSupportedGraphicsClocks(handle, memory)
        return min(found), max(found)

    def _handle(self, uuid: str) -> Any:
        return self._nvml.nvmlDeviceGetHandleByUUID(uuid)


def serve(limits: PowerLimits, clocks: ClockLocks, lines: TextIO, out: TextIO, nvml: Any) -> None:
    """Answer each line until there are no more; then restore everything."""
    try:
        for line in lines:
            request: dict[str, Any] = json.loads(line)
            try:
                _apply(limits, request["watts"])
                _apply(clocks, request["hz"])
                answer = request
            except nvml.NVMLError as error:
                _restore(limits, clocks)
                answer = {"error": str(error)}
            print(json.dumps(answer), file=out, flush=True)
    finally:
        _restore(limits, clocks)


def _apply(setting: PowerLimits | ClockLocks, value: float | None) -> None:
    if value is None:
        setting.restore()
    else:
        setting.set(float(value))


def _restore(limits: PowerLimits, clocks: ClockLocks) -> None:
    try:
        limits.restore()
    finally:
        clocks.restore()


def greeting(limits: PowerLimits, clocks: ClockLocks, nvml: Any) -> dict[str, Any]:
    """A guard's first line: the ranges of limits and clocks, or why none can be set.

    Permission is tried by setting the limit that is set already, and by a lock that locks nothing.
    """
    if limits.reason is not None:
        return {"error": limits.reason}
    try:
        low, high = limits.range_w()
        limits.try_permission()
        answer: dict[str, Any] = {"range_w": [low, high]}
    except nvml.NVMLError as error:
        return {"error": f"NVML answers {error}: setting power limits needs the administrator"}
    try:
        answer["range_hz"] = list(clocks.range_hz())
        clocks.try_permission()
    except nvml.NVMLError as error:
        answer.pop("range_hz", None)
        answer["clock_error"] = f"NVML answers {error}: these boards' clocks cannot be locked"
    return answer


def main(file: str, nvml: Any = None) -> int:
    """Serve stdin; returns the exit status."""
    nvml = nvml or import_module("pynvml")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        limits = PowerLimits(nvml, Path(file))
        clocks = ClockLocks(nvml, Path(f"{file}.clocks"), limits.uuids)
    except nvml.NVMLError as error:
        print(json.dumps({"error": f"NVML answers {error}"}), flush=True)
        return 1
    print(json.dumps(greeting(limits, clocks, nvml)), flush=True)
    serve(limits, clocks, sys.stdin, sys.stdout, nvml)
    return 0


def _leave(number: int, frame: object) -> None:
    """A signal ends the reading of stdin; everything is restored on the way out."""
    del number, frame
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
