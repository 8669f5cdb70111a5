"""AMD boards through an injected binding."""

from types import SimpleNamespace
from typing import Any

import pytest

from autotune import meters
from autotune.meters import MeterTools, amd
from tests.support.energy_sim import Clock, only, record


class AmdSmiException(Exception):  # noqa: N818
    pass


class Smi(SimpleNamespace):
    """amdsmi's names: one board."""

    AmdSmiException = AmdSmiException

    def __init__(self) -> None:
        super().__init__()
        self.count = 1000
        self.power: dict[str, Any] = {"current_socket_power": 200, "average_socket_power": "N/A"}
        self.fails: set[str] = set()

    def _may(self, name: str) -> None:
        if name in self.fails:
            raise AmdSmiException("error 2")

    def amdsmi_init(self) -> None:
        self._may("init")

    def amdsmi_get_processor_handles(self) -> list[str]:
        return ["board"]

    def amdsmi_get_gpu_device_uuid(self, handle: str) -> str:
        return "ABCD-12"

    def amdsmi_get_energy_count(self, handle: str) -> dict[str, Any]:
        self._may("energy")
        return {"energy_accumulator": self.count, "counter_resolution": 15.3, "timestamp": 1}

    def amdsmi_get_power_info(self, handle: str) -> dict[str, Any]:
        self._may("power")
        return self.power


def opened(smi: Any, *uuids: str) -> tuple[amd.Amd, Clock]:
    clock = Clock()
    tools = MeterTools(amdsmi=smi, clock=clock, devices=uuids or None, background=False)
    return amd.open(tools), clock


def test_accumulator() -> None:
    smi = Smi()
    meter, clock = opened(smi, "GPU-abcd12")
    meter.periods_s["amd:gpu0"] = 0.01
    first = meter.read()
    clock.now, smi.count = 2.0, 1000 + round(400e6 / 15.3)
    found = only(meter.difference(first, meter.read()))
    assert (found.energy_j, found.label) == (pytest.approx(400.0), "measured_counter")
    assert meter.sources()[0].label == "measured_counter"
    assert meter.max_gap_s() is None
    second = meter.read()
    smi.count, clock.now = 5, 4.0
    assert meters.code(only(meter.difference(second, meter.read())).reason) == "counter_reset"
    smi.fails.add("energy")
    assert only(meter.difference(second, meter.read())).energy_j is None
    assert meter.sources()[0].label == "unavailable"


def test_power_where_there_is_no_accumulator() -> None:
    smi = Smi()
    smi.fails.add("energy")
    meter, clock = opened(smi)
    found = only(meter.difference(*record(meter, meter.sampler, clock, 10.0)))
    assert (found.energy_j, found.label) == (pytest.approx(2000.0), "measured_sampled")
    assert meter.sources()[0].label == "measured_sampled"
    assert meter.max_gap_s() is not None


@pytest.mark.parametrize("answer", [{}, {"current_socket_power": "N/A"}])
def test_power_that_is_no_number(answer: dict[str, Any]) -> None:
    smi = Smi()
    smi.fails.add("energy")
    smi.power = answer
    meter, _ = opened(smi)
    assert meter.sources()[0].label == "unavailable"


def test_unknown_answer_of_the_counter() -> None:
    smi = Smi()
    smi.amdsmi_get_energy_count = lambda handle: {"something": "else"}
    smi.power = {}
    meter, _ = opened(smi)
    assert meters.code(meter.sources()[0].reason) == "implausible"


@pytest.mark.parametrize("uuids", [("GPU-none",)])
def test_no_board(uuids: tuple[str, ...]) -> None:
    meter, _ = opened(Smi(), *uuids)
    (source,) = meter.sources()
    assert (source.label, meters.code(source.reason)) == ("unavailable", "no_interface")
    assert only(meter.difference(meter.read(), meter.read())).energy_j is None


def test_driver_that_does_not_start() -> None:
    smi = Smi()
    smi.fails.add("init")
    assert opened(smi)[0].sources()[0].reason == "no_interface: error 2"


def test_library_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise KeyError(name)  # as amdsmi's import does without its library

    monkeypatch.setattr(amd, "import_module", missing)
    (source,) = opened(None)[0].sources()
    assert "cannot be imported" in (source.reason or "")
