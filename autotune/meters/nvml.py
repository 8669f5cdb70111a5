"""NVML: the whole board of each named GPU, by its total energy counter or by its power.

    counter (Volta and later)   measured_counter; power is sampled beside it as a check: more
                                than 15 % apart, and the label is measured_sampled
    power alone                 measured_sampled: the trapezoid integral (`meters._sampling`)

CUDA's order is not NVML's: boards are found by UUID, never by index.  A board that is split
by MIG is refused, since its counter cannot be attributed to one slice.

What this does not know: the energy of co-tenants on the same board (it is included; the
source's note counts them), and power between two samples.  Ampere and later report the
average power of the last second: an edge of a window may be off by half of that.

The caller must wait for the device (``torch.cuda.synchronize``) before it opens and closes
a window: NVML does not know which kernels are still to run.
"""

import os
from collections.abc import Callable
from functools import partial
from importlib import import_module
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import msgspec

from autotune.meters import Fault, MeterTools, Reading, _sampling, conclude, unavailable
from autotune.records.measurement import Domain, EnergySource

NOUN = "NVIDIA GPU"
BOARDS = ()
_QUANTUM_J = 1e-3
_FALLBACK_MAX_W = 2000.0
_TRANSIENT = 1.5
"""A board may exceed its power limit by this factor for milliseconds."""
_SAMPLE_S = 0.1
_LAG_S = 0.5
_APART = 0.15
_NOT_SUPPORTED = 3
_NO_SUCH = (2, 6)
"""NVML_ERROR_INVALID_ARGUMENT and NVML_ERROR_NOT_FOUND."""
_REMEDIES = {
    "no_interface": "install the NVIDIA driver with its libnvidia-ml.so.1 and a GPU of the "
    "Volta generation or later; or pass --accept-modelled-energy",
    "permission": "let the administrator allow NVML for this user (in a container: start it "
    "with the NVIDIA runtime and the utility capability)",
    "mig": "disable MIG on the board (nvidia-smi -mig 0, as the administrator), or choose a "
    "board without MIG: one slice has no energy counter",
    "implausible": "update the NVIDIA driver: its energy counter returns no number",
}


class Board(NamedTuple):
    """One GPU: its NVML handle and the power it cannot exceed, or why it cannot be read.

    ``sensor`` is its power where that can be read; ``counter`` is False where there is no
    total energy counter.
    """

    domain: str
    handle: Any
    max_w: float
    fault: Fault | None
    sensor: _sampling.Sensor | None = None
    counter: bool = True


class Nvml:
    """The named boards of this machine."""

    def __init__(self, tools: MeterTools) -> None:
        self._tools = tools
        self.periods_s: dict[str, float] = {}
        self._nvml, self._boards, self._fault = _start(tools)
        sensors = [board.sensor for board in self._boards if board.sensor is not None]
        self.periods_s |= {b.domain: _LAG_S for b in self._boards if not b.counter}
        self.sampler = _sampling.Sampler(
            sensors, tools.clock, period_s=_SAMPLE_S, background=tools.background
        )

    def sources(self) -> tuple[EnergySource, ...]:
        """One source for every board, or a single one that says why there is none."""
        if self._fault is not None:
            return (_source("nvml", (), self._fault, None, _remedy(self._fault)),)
        return tuple(self._board_source(board) for board in self._boards)

    def read(self) -> Reading:
        """Millijoules since the driver was loaded, and the integral of power, by domain."""
        at_s = self._tools.clock()
        counters = {b.domain: self._counter(b) for b in self._boards if b.counter}
        return Reading(at_s, counters, self.sampler.read())

    def difference(self, *readings: Reading) -> tuple[Domain, ...]:
        """Joules by domain; a counter that goes backwards was reset (64 bits never wrap).

        Where no board can be read at all one unavailable domain stands for them, so that
        no total is given without the GPU's energy.
        """
        if self._fault is not None:
            return (unavailable("nvml", self._fault),)
        return tuple(self._domain(board, readings) for board in self._boards)

    def max_gap_s(self) -> float | None:
        """64-bit counters do not wrap; only the power sampler needs regular readings."""
        return _sampling.GUARD_S if any(board.sensor for board in self._boards) else None

    def _domain(self, board: Board, readings: tuple[Reading, ...]) -> Domain:
        if board.sensor is None:
            return self._counted(board, readings)
        sampled = _sampling.domain(board.sensor, readings)
        return _agreed(self._counted(board, readings), sampled) if board.counter else sampled

    def _counted(self, board: Board, readings: tuple[Reading, ...]) -> Domain:
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

    def _board_source(self, board: Board) -> EnergySource:
        value = self._counter(board) if board.counter else board.sensor and board.sensor.watts()
        fault = value if isinstance(value, Fault) else None
        return _source(
            board.domain,
            (board.domain,),
            fault,
            self.periods_s.get(board.domain),
            None if fault is None else _remedy(fault),
            label="measured_counter" if board.counter else "measured_sampled",
            note=_tenants(self._nvml, board),
        )

    def _counter(self, board: Board) -> int | Fault:
        if board.fault is not None:
            return board.fault
        try:
            value = self._nvml.nvmlDeviceGetTotalEnergyConsumption(board.handle)
        except self._nvml.NVMLError as error:
            return _fault(self._nvml, error)
        if not isinstance(value, int) or value < 0:
            return Fault("implausible", f"the energy counter returned {value!r}")
        return value


def open(tools: MeterTools) -> Nvml:
    """The meter of the boards in ``tools.devices``; never raises."""
    return Nvml(tools)


def _agreed(counter: Domain, sampled: Domain) -> Domain:
    """The counter's energy.  Where sampled power differs by over 15 %, the half-width is at
    least the difference, and the label is measured_sampled.

    A window that is too short for sampled power is not checked.
    """
    if counter.energy_j is None or sampled.energy_j is None:
        return counter
    apart_j = abs(counter.energy_j - sampled.energy_j)
    share = apart_j / max(counter.energy_j, sampled.energy_j)
    if share <= _APART:
        return counter
    note = (
        f"the counter measured {counter.energy_j:.4g} J and sampled power "
        f"{sampled.energy_j:.4g} J, {share:.0%} apart"
    )
    widest = max(counter.uncertainty_j or 0.0, apart_j)
    return msgspec.structs.replace(
        counter, label="measured_sampled", uncertainty_j=widest, note=note
    )


def _start(tools: MeterTools) -> tuple[Any, list[Board], Fault | None]:
    nvml = tools.nvml
    if nvml is None:
        try:
            nvml = import_module("pynvml")
        except ImportError:
            return None, [], Fault("no_interface", "nvidia-ml-py is not installed")
    try:
        nvml.nvmlInit()
        devices = _every(nvml) if tools.devices == ("all",) else tools.devices or visible(nvml)
    except nvml.NVMLError as error:
        return nvml, [], _fault(nvml, error)
    if isinstance(devices, Fault):
        return nvml, [], devices
    boards = [_board(nvml, f"nvml:gpu{i}", uuid) for i, uuid in enumerate(devices)]
    return nvml, boards, None


def _every(nvml: Any) -> tuple[str, ...] | Fault:
    """The UUIDs of all boards, in NVML's own order."""
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    found = tuple(_string(nvml.nvmlDeviceGetUUID(handle)) for handle in handles)
    return found or Fault("no_interface", "no NVIDIA GPU")


def visible(nvml: Any) -> tuple[str, ...] | Fault:
    """The UUIDs in CUDA_VISIBLE_DEVICES; else that of the machine's only board."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = [part.strip() for part in (named or "").split(",")]
    if named is not None and visible[0] in ("", "-1", "NoDevFiles"):
        return Fault("no_interface", "CUDA_VISIBLE_DEVICES hides every GPU")
    if named is not None and all(part.startswith(("GPU-", "MIG-")) for part in visible):
        return tuple(visible)
    count = nvml.nvmlDeviceGetCount()
    if count == 0 or (count == 1 and visible not in ([""], ["0"])):
        return Fault("no_interface", "no GPU that CUDA may use")
    if count > 1:
        return Fault("no_interface", "several GPUs and none named by UUID")
    return (_string(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(0))),)


def _board(nvml: Any, domain: str, uuid: str) -> Board:
    if uuid.startswith("MIG-"):
        return Board(domain, None, _FALLBACK_MAX_W, Fault("mig"))
    try:
        handle = _handle(nvml, uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
    except nvml.NVMLError as error:
        return Board(domain, None, _FALLBACK_MAX_W, _fault(nvml, error))
    max_w = _max_w(nvml, handle)
    if _mig(nvml, handle):
        return Board(domain, handle, max_w, Fault("mig"))
    watts = partial(_watts, nvml, handle)
    readable = not isinstance(watts(), Fault)
    sensor = _sampling.Sensor(domain, watts, max_w, _LAG_S) if readable else None
    return Board(domain, handle, max_w, None, sensor, not readable or _has_counter(nvml, handle))


def _handle(nvml: Any, uuid: str) -> Any:
    """The board of a UUID; as in CUDA, a prefix is enough where only one board has it."""
    try:
        return nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError as error:
        if getattr(error, "value", None) not in _NO_SUCH:
            raise
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        found = [h for h in handles if _string(nvml.nvmlDeviceGetUUID(h)).startswith(uuid)]
        if len(found) != 1 or uuid == "GPU-":
            raise
        return found[0]


def _watts(nvml: Any, handle: Any) -> float | Fault:
    read: Callable[[Any], Any] | None = getattr(nvml, "nvmlDeviceGetPowerUsage", None)
    if read is None:
        return Fault("no_interface", "this pynvml has no nvmlDeviceGetPowerUsage")
    try:
        value = read(handle)
    except nvml.NVMLError as error:
        return _fault(nvml, error)
    if not isinstance(value, int) or value < 0:
        return Fault("implausible", f"the power sensor returned {value!r}")
    return value * 1e-3


def _has_counter(nvml: Any, handle: Any) -> bool:
    """False only where NVML reports "not supported" (boards before Volta)."""
    try:
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError as error:
        return getattr(error, "value", None) != _NOT_SUPPORTED
    return True


def _tenants(nvml: Any, board: Board) -> str | None:
    """A note where several processes use the board: its energy includes all of them."""
    list_them = getattr(nvml, "nvmlDeviceGetComputeRunningProcesses", None)
    if list_them is None or board.handle is None:
        return None
    try:
        count = len(list_them(board.handle))
    except Exception:  # old drivers raise pynvml errors that are no NVMLError; the note is optional
        return None
    return f"{count} processes share this board, its energy includes all" if count > 1 else None


def _mig(nvml: Any, handle: Any) -> bool:
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:
        return False  # boards without MIG report "not supported"
    return bool(current)


def _max_w(nvml: Any, handle: Any) -> float:
    try:
        _low, high = nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
    except nvml.NVMLError:
        return _FALLBACK_MAX_W
    return _TRANSIENT * high * 1e-3 if high > 0 else _FALLBACK_MAX_W


def _fault(nvml: Any, error: Exception) -> Fault:
    """NVML's error as a fault: ``permission`` where access is denied, else ``no_interface``."""
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
    *,
    label: Literal["measured_counter", "measured_sampled"] = "measured_counter",
    note: str | None = None,
) -> EnergySource:
    return EnergySource(
        name=name,
        domains=domains,
        label=label if fault is None else "unavailable",
        reason=None if fault is None else str(fault),
        remedy=remedy,
        update_period_s=period_s,
        note=note,
    )


def _remedy(fault: Fault) -> str:
    if "none named" in fault.detail:
        return "name the board: CUDA_VISIBLE_DEVICES=GPU-<uuid> (nvidia-smi -L lists them)"
    return _REMEDIES[fault.reason]


def _string(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
