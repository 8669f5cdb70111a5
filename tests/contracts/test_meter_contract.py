"""Every file in ``meters/`` keeps the meter protocol; a new one joins by itself."""

import subprocess
import sys
from pathlib import Path

import pytest

from autotune import meters, plugins
from autotune.meters import Fault, Meter, MeterTools, Power

NAMES = plugins.names("meters")


@pytest.fixture(params=NAMES)
def meter(request: pytest.FixtureRequest, tmp_path: Path) -> Meter:
    """A meter on a machine that has nothing to read."""
    tools = MeterTools(
        powercap=tmp_path / "none", sys=tmp_path, proc=tmp_path, devices=("GPU-none",)
    )
    opened: Meter = plugins.load("meters", request.param).open(tools)
    return opened


def test_sources_say_why_and_what_helps(meter: Meter) -> None:
    for source in meter.sources():
        if source.label == "unavailable":
            assert meters.code(source.reason) in meters.REASONS
            assert source.remedy
        else:
            assert source.label.startswith(("measured", "modelled"))


def test_nothing_read_is_never_zero_joules(meter: Meter) -> None:
    before, after = meter.read(), meter.read()
    domains = meter.difference(before, after)
    for domain in domains:
        assert domain.energy_j is None
        assert domain.label == "unavailable"
        assert meters.code(domain.reason) in meters.REASONS
    window = meters.window(1.0, domains)
    assert window.total_j is None
    assert window.label == "unavailable"
    assert meters.code(window.reason) in meters.REASONS


def test_difference_is_pure(meter: Meter) -> None:
    before, after = meter.read(), meter.read()
    assert meter.difference(before, after) == meter.difference(before, after)


def test_read_gives_numbers_or_faults(meter: Meter) -> None:
    reading = meter.read()
    assert all(isinstance(value, int | Fault) for value in reading.counters.values())
    assert all(isinstance(value, Power | Fault) for value in reading.power.values())


def test_a_machine_without_it_gets_a_reason_and_a_remedy(meter: Meter) -> None:
    """The doctor prints them: no empty reason, and a source for each plug-in."""
    assert meter.sources()
    for source in meter.sources():
        assert source.reason
        assert source.name


def test_every_domain_belongs_to_a_source(meter: Meter) -> None:
    named = {name for source in meter.sources() for name in (source.name, *source.domains)}
    assert {d.name for d in meter.difference(meter.read(), meter.read())} <= named


def test_guard_is_positive_or_none(meter: Meter) -> None:
    guard = meter.max_gap_s()
    assert guard is None or guard > 0


@pytest.mark.parametrize("name", NAMES)
def test_importing_a_meter_is_light(name: str) -> None:
    heavy = "torch pynvml numpy psutil onnxruntime".split()  # noqa: SIM905
    code = f"import sys, autotune.meters.{name}; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
