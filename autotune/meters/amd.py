"""AMD GPUs by amdsmi (comes with ROCm): the board's energy accumulator, or its power.

``amdsmi_get_energy_count`` returns an accumulator and the microjoules per count.  A board
without it is sampled (``amdsmi_get_power_info``).  Boards are matched by UUID.

What this does not know: the energy of co-tenants on the same board (it is included).
"""

from functools import partial
from importlib import import_module
from itertools import pairwise
from typing import Any, NamedTuple

from autotune.meters import Fault, MeterTools, Reading, _sampling, conclude, unavailable
from autotune.records.measurement import Domain, EnergySource

NOUN = "AMD GPU"
BOARDS = ("AMD", "Radeon", "Instinct")
_MAX_W = 2000.0
_QUANTUM_J = 15.3e-6
_SAMPLE_S = 0.1
_LAG_S = 0.5
_REMEDY = (
    "install ROCm's amdsmi for this Python (pip install /opt/rocm/share/amd_smi) and let this "
    "user into the groups video and render; or pass --accept-modelled-energy"
)
_POWERS = ("current_socket_power", "average_socket_power", "socket_power")


class Board(NamedTuple):
    """One GPU.  ``counter`` is False where only its power can be read."""

    domain: str
    handle: Any
    sensor: _sampling.Sensor
    counter: bool


class Amd:
    """The named AMD boards of this machine, all of them where none is named."""

    def __init__(self, tools: MeterTools) -> None:
        self._clock = tools.clock
        self._smi, self._boards, self._fault = _start(tools)
        sampled = [board.sensor for board in self._boards if not board.counter]
        self.periods_s = {sensor.domain: _LAG_S for sensor in sampled}
        self.sampler = _sampling.Sampler(
            sampled, tools.clock, period_s=_SAMPLE_S, background=tools.background
        )

    def sources(self) -> tuple[EnergySource, ...]:
        """One source for every board, or a single one that says why there is none."""
        if self._fault is not None:
            reason = str(self._fault)
            return (EnergySource(name="amd", label="unavailable", reason=reason, remedy=_REMEDY),)
        return tuple(self._source(board) for board in self._boards)

    def read(self) -> Reading:
        """Microjoules by domain, and the integral of power where there is no counter."""
        at_s = self._clock()
        counters = {b.domain: _energy_uj(self._smi, b.handle) for b in self._boards if b.counter}
        return Reading(at_s, counters, self.sampler.read())

    def difference(self, *readings: Reading) -> tuple[Domain, ...]:
        """Joules by domain; an accumulator that goes backwards was reset."""
        if self._fault is not None:
            return (unavailable("amd", self._fault),)
        return tuple(self._domain(board, readings) for board in self._boards)

    def max_gap_s(self) -> float | None:
        """64-bit counters do not wrap; only the power sampler needs regular readings."""
        return None if all(board.counter for board in self._boards) else _sampling.GUARD_S

    def _domain(self, board: Board, readings: tuple[Reading, ...]) -> Domain:
        if not board.counter:
            return _sampling.domain(board.sensor, readings)
        values: list[int] = []
        for reading in readings:
            value = reading.counters.get(board.domain, Fault("no_interface", "never read"))
            if isinstance(value, Fault):
                return unavailable(board.domain, value)
            values.append(value)
        if any(later < earlier for earlier, later in pairwise(values)):
            return unavailable(board.domain, "counter_reset")
        return conclude(
            board.domain,
            (values[-1] - values[0]) * 1e-6,
            readings[-1].at_s - readings[0].at_s,
            period_s=self.periods_s.get(board.domain),
            quantum_j=_QUANTUM_J,
            max_w=board.sensor.max_w,
        )

    def _source(self, board: Board) -> EnergySource:
        value: float | Fault = (
            _energy_uj(self._smi, board.handle) if board.counter else board.sensor.watts()
        )
        fault = value if isinstance(value, Fault) else None
        label = "measured_counter" if board.counter else "measured_sampled"
        return EnergySource(
            name=board.domain,
            domains=(board.domain,),
            label="unavailable" if fault else label,  # type: ignore[arg-type]
            reason=None if fault is None else str(fault),
            remedy=None if fault is None else _REMEDY,
            update_period_s=self.periods_s.get(board.domain),
        )


def open(tools: MeterTools) -> Amd:
    """The meter of AMD's boards; never raises."""
    return Amd(tools)


def _start(tools: MeterTools) -> tuple[Any, list[Board], Fault | None]:
    smi = tools.amdsmi
    if smi is None:
        try:
            smi = import_module("amdsmi")
        except Exception as error:  # without ROCm's library it raises various types
            detail = f"amdsmi cannot be imported ({type(error).__name__})"
            return None, [], Fault("no_interface", detail)
    try:
        smi.amdsmi_init()
        handles = list(smi.amdsmi_get_processor_handles())
        if tools.devices and tools.devices != ("all",):
            known = {_bare(smi.amdsmi_get_gpu_device_uuid(handle)): handle for handle in handles}
            handles = [known[_bare(uuid)] for uuid in tools.devices if _bare(uuid) in known]
    except smi.AmdSmiException as error:
        return smi, [], Fault("no_interface", str(error))
    if not handles:
        return smi, [], Fault("no_interface", "no AMD GPU, or none with the given UUIDs")
    return smi, [_board(smi, f"amd:gpu{i}", handle) for i, handle in enumerate(handles)], None


def _board(smi: Any, domain: str, handle: Any) -> Board:
    sensor = _sampling.Sensor(domain, partial(_watts, smi, handle), _MAX_W, _LAG_S)
    counter = not isinstance(_energy_uj(smi, handle), Fault)
    return Board(domain, handle, sensor, counter or isinstance(sensor.watts(), Fault))


def _energy_uj(smi: Any, handle: Any) -> int | Fault:
    try:
        found = smi.amdsmi_get_energy_count(handle)
        count = found.get("energy_accumulator", found.get("power"))
        value = round(count * found["counter_resolution"])
    except smi.AmdSmiException as error:
        return Fault("no_interface", str(error))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return Fault("implausible", f"the energy counter's format is unknown: {error}")
    return value if value > 0 else Fault("implausible", f"the energy counter returned {value}")


def _watts(smi: Any, handle: Any) -> float | Fault:
    try:
        found = smi.amdsmi_get_power_info(handle)
    except smi.AmdSmiException as error:
        return Fault("no_interface", str(error))
    for name in _POWERS:
        value = found.get(name)
        if isinstance(value, int | float) and value > 0:  # "N/A" or 65535 where it is not known
            return float(value)
    return Fault("implausible", "the power sensor returned no number")


def _bare(uuid: str) -> str:
    return uuid.lower().removeprefix("gpu-").replace("-", "")
