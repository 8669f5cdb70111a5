"""The highest clock of the GPUs in use, while the power guard lives.

    set(1.2e9) --> boards noted in a file --> clocks locked between the lowest and 1.2 GHz
    restore()  --> the lock taken off, the file removed

NVML tells no lock that there is already, so that one that an administrator has set before is taken
off too: what is put back is the board's own choice.  Torch-free; NVML's clocks are in MHz.  Tested
with a made-up NVML, never yet on a GPU.
"""

from pathlib import Path
from typing import Any

from autotune.worker.energy.noted import Noted

_MHZ = 1e6


class Clocks:
    """The boards' graphics clocks, in hertz.

    Args:
        nvml: the binding, or one that is made up.
        file: where the boards are noted whose clocks are locked.
        uuids: of the boards.
    """

    def __init__(self, nvml: Any, file: Path, uuids: tuple[str, ...]) -> None:
        self._nvml, self._uuids = nvml, uuids
        self._noted = Noted(file, self._unlock, nvml.NVMLError, "the lock on the clocks")

    def range_hz(self) -> tuple[float, float]:
        """What every board has.

        Raises:
            NVMLError: a board does not tell.
        """
        pairs = [self._supported_mhz(uuid) for uuid in self._uuids]
        return max(low for low, _ in pairs) * _MHZ, min(high for _, high in pairs) * _MHZ

    def try_permission(self) -> None:
        """Lock each board's clocks to all that it has, and take the lock off.

        Raises:
            NVMLError: it is not permitted, or the board is too old.
        """
        for uuid in self._uuids:
            self._lock(uuid, self._supported_mhz(uuid)[1])
            self._unlock(uuid, None)

    def set(self, hz: float) -> None:
        """Let no board's clock rise above ``hz``, after noting that it is locked.

        Raises:
            NVMLError: it is not permitted, or outside of what a board has.
        """
        self._noted.note(lambda: dict.fromkeys(self._uuids))
        for uuid in self._uuids:
            self._lock(uuid, round(hz / _MHZ))

    def restore(self) -> None:
        """Take every lock off; a board that refuses stays noted."""
        self._noted.put_back()

    def _unlock(self, uuid: str, _: object) -> None:
        self._nvml.nvmlDeviceResetGpuLockedClocks(self._handle(uuid))

    def _lock(self, uuid: str, mhz: int) -> None:
        low, _ = self._supported_mhz(uuid)
        self._nvml.nvmlDeviceSetGpuLockedClocks(self._handle(uuid), min(low, mhz), mhz)

    def _supported_mhz(self, uuid: str) -> tuple[int, int]:
        """The lowest and highest graphics clock at the memory's highest."""
        handle = self._handle(uuid)
        memory = max(self._nvml.nvmlDeviceGetSupportedMemoryClocks(handle))
        found = self._nvml.nvmlDeviceGetSupportedGraphicsClocks(handle, memory)
        return min(found), max(found)

    def _handle(self, uuid: str) -> Any:
        return self._nvml.nvmlDeviceGetHandleByUUID(uuid)
