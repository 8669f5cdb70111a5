"""NVML's total energy counter: the whole board of each named GPU (Volta and later).

CUDA's order is not NVML's: boards are found by UUID, never by index.  A board that is split
by MIG is refused, since its counter cannot be attributed to one slice.

What this does not know: the energy of co-tenants on the same board (it is included), and
sampled power where there is no counter (a later issue).

The caller must wait for the device (``torch.cuda.synchronize``) before it opens and closes
a window: NVML does not know which kernels are still to run.
"""

import os
from importlib import import_module
from itertools import pairwise
from typing import Any, NamedTuple

from autotune.meters import Fault, Reading, Tools, conclude, unavailable
from autotune.records.measurement import Domain, EnergySource

_QUANTUM_J = 1e-3
_FALLBACK_MAX_W = 2000.0
_TRANSIENT = 1.5
"""Boards may exceed their power limit for milliseconds."""
_REMEDIES = {
    "no_interface": "install the NVIDIA driver with its libnvidia-ml.so.1 and a GPU of the "
    "Volta generation or later; or pass --accept-modelled-energy",
    "permission": "let the administrator allow NVML for this user (in a container: start it "
    "with the NVIDIA runtime and the utility capability)",
    "mig": "disable MIG on the board (nvidia-smi -mig 0, as the administrator), or choose a "
    "board without MIG: one slice has no energy counter",
    "implausible": "update the NVIDIA driver: its energy counter does not answer a number",
}


class Board(NamedTuple):
    """One GPU: its NVML handle and the power it cannot exceed, or why it cannot be read."""

    domain: str
    handle: Any
    max_w: float
    fault: Fault | None


class Nvml:
    """The named boards of this machine."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self.periods_s: dict[str, float] = {}
        self._nvml, self._boards, self._fault = _start(tools)

    def sources(self) -> tuple[EnergySource, ...]:
        """One source for every board, or a single one that says why there is none."""
        if self._fault is not None:
            return (_source("nvml", (), self._fault, None, _remedy(self._fault)),)
        sources = []
        for board in self._boards:
            value = self._counter(board)
            fault = value if isinstance(value, Fault) else None
            period = self.periods_s.get(board.domain)
            remedy = None if fault is None else _remedy(fault)
            sources.append(_source(board.domain, (board.domain,), fault, period, remedy))
        return tuple(sources)

    def read(self) -> Reading:
        """Millijoules since the driver was loaded, by domain."""
        counters = {board.domain: self._counter(board) for board in self._boards}
        return Reading(self._tools.clock(), counters)

    def difference(self, *readings: Reading) -> tuple[Domain, ...]:
        """Joules by domain; a counter that goes backwards was reset (64 bits never wrap).

        Where no board can be read at all one unavailable domain stands for them, so that a
        total without the GPU is never taken for the whole.
        """
        if self._fault is not None:
            return (unavailable("nvml", self._fault),)
        return tuple(self._domain(board, readings) for board in self._boards)

    def guard_s(self) -> float | None:
        """64-bit counters need no guard."""
        return None

    def _domain(self, board: Board, readings: tuple[Reading, ...]) -> Domain:
        values: list[int] = []
        for reading in readings:
            value = reading.counters.get(board.domain, Fault("no_interface", "never read"))
            if isinstance(value, Fault):
                return unavailable(board.domain, value)
            values.append(value)
        if any(b < a for a, b in pairwise(values)):
            return unavailable(board.domain, "counter_reset")
        return conclude(
            board.domain,
            (values[-1] - values[0]) * 1e-3,
            readings[-1].at_s - readings[0].at_s,
            period_s=self.periods_s.get(board.domain),
            quantum_j=_QUANTUM_J,
            max_w=board.max_w,
        )

    def _counter(self, board: Board) -> int | Fault:
        if board.fault is not None:
            return board.fault
        try:
            value = self._nvml.nvmlDeviceGetTotalEnergyConsumption(board.handle)
        except self._nvml.NVMLError as error:
            return _fault(self._nvml, error)
        if not isinstance(value, int) or value < 0:
            return Fault("implausible", f"the energy counter answered {value!r}")
        return value


def open(tools: Tools) -> Nvml:
    """The meter of the boards in ``tools.devices``; never raises."""
    return Nvml(tools)


def _start(tools: Tools) -> tuple[Any, list[Board], Fault | None]:
    nvml = tools.nvml
    if nvml is None:
        try:
            nvml = import_module("pynvml")
        except ImportError:
            return None, [], Fault("no_interface", "nvidia-ml-py is not installed")
    try:
        nvml.nvmlInit()
        devices = tools.devices or _only(nvml)
    except nvml.NVMLError as error:
        return nvml, [], _fault(nvml, error)
    if devices is None:
        return nvml, [], Fault("no_interface", "no GPU, or several and none named by UUID")
    boards = [_board(nvml, f"nvml:gpu{i}", uuid) for i, uuid in enumerate(devices)]
    return nvml, boards, None


def _only(nvml: Any) -> tuple[str, ...] | None:
    """The UUIDs that CUDA may see if it names them, or that of a machine's only board."""
    visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if visible and all(part.startswith(("GPU-", "MIG-")) for part in visible):
        return tuple(visible)
    if nvml.nvmlDeviceGetCount() != 1:
        return None
    return (_string(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(0))),)


def _board(nvml: Any, domain: str, uuid: str) -> Board:
    if uuid.startswith("MIG-"):
        return Board(domain, None, _FALLBACK_MAX_W, Fault("mig"))
    name = uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(name)
    except nvml.NVMLError as error:
        return Board(domain, None, _FALLBACK_MAX_W, _fault(nvml, error))
    fault = Fault("mig") if _mig(nvml, handle) else None
    return Board(domain, handle, _max_w(nvml, handle), fault)


def _mig(nvml: Any, handle: Any) -> bool:
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:
        return False  # boards that know no MIG answer "not supported"
    return bool(current)


def _max_w(nvml: Any, handle: Any) -> float:
    try:
        _low, high = nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
    except nvml.NVMLError:
        return _FALLBACK_MAX_W
    return _TRANSIENT * high * 1e-3 if high > 0 else _FALLBACK_MAX_W


def _fault(nvml: Any, error: Exception) -> Fault:
    """NVML's error as a reason: only a refused permission is not a missing interface."""
    number = getattr(error, "value", None)
    if number is not None and number == getattr(nvml, "NVML_ERROR_NO_PERMISSION", None):
        return Fault("permission", str(error))
    return Fault("no_interface", str(error))


def _source(
    name: str,
    domains: tuple[str, ...],
    fault: Fault | None,
    period_s: float | None,
    remedy: str | None,
) -> EnergySource:
    return EnergySource(
        name=name,
        domains=domains,
        label="measured_counter" if fault is None else "unavailable",
        reason=None if fault is None else str(fault),
        remedy=remedy,
        update_period_s=period_s,
    )


def _remedy(fault: Fault) -> str:
    if "none named" in fault.detail:
        return "name the board: CUDA_VISIBLE_DEVICES=GPU-<uuid> (nvidia-smi -L lists them)"
    return _REMEDIES[fault.reason]


def _string(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
