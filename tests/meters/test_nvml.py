"""NVML's faults through an injected binding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autotune import meters
from autotune.meters import MeterTools, nvml
from tests.support.energy_sim import Clock, nvml_library, record
from tests.support.energy_sim import Nvml as Fake
from tests.support.energy_sim import nvml_meter as meter


def test_boards_are_found_by_uuid_in_torch_order() -> None:
    fake, clock = Fake(a=1000, b=5000), Clock()
    found = meter(fake, clock, "b", "GPU-a")
    before = found.read()
    clock.now = 2.0
    fake.energy["GPU-b"] += 600_000
    fake.energy["GPU-a"] += 100_000
    first, second = found.difference(before, found.read())
    assert (first.name, first.energy_j) == ("nvml:gpu0", pytest.approx(600.0))
    assert (second.name, second.energy_j) == ("nvml:gpu1", pytest.approx(100.0))
    assert first.uncertainty_j == pytest.approx(2 * 0.02 * 300, rel=0.01)
    assert [s.label for s in found.sources()] == ["measured_counter"] * 2
    assert found.sources()[0].update_period_s == 0.02
    assert found.max_gap_s() is None


@pytest.mark.parametrize("number", [1, 3, 9, 12, 13, 15, 18, 999])
@pytest.mark.parametrize("call", ["init", "handle", "energy"])
def test_each_error_is_a_reason_and_never_zero_joules(call: str, number: int) -> None:
    fake, clock = Fake(a=1000), Clock()
    fake.errors[call] = number
    found = meter(fake, clock, "a")
    before = found.read()
    clock.now = 1.0
    domains = found.difference(before, found.read())
    assert [d.energy_j for d in domains] == [None]
    assert meters.code(domains[0].reason) == "no_interface"
    assert [(s.label, s.remedy is not None) for s in found.sources()] == [("unavailable", True)]
    assert meters.window(1.0, domains).total_j is None


@pytest.mark.parametrize("call", ["init", "energy"])
def test_no_permission(call: str) -> None:
    fake = Fake(a=1000)
    fake.errors[call] = 4
    (source,) = meter(fake).sources()
    assert meters.code(source.reason) == "permission"


def test_error_after_the_window_opened() -> None:
    fake, clock = Fake(a=1000), Clock()
    found = meter(fake, clock)
    before = found.read()
    clock.now, fake.errors["energy"] = 1.0, 15
    (domain,) = found.difference(before, found.read())
    assert (domain.energy_j, meters.code(domain.reason)) == (None, "no_interface")


def test_mig() -> None:
    fake = Fake(a=1000)
    fake.mig["GPU-a"] = 1
    (source,) = meter(fake).sources()
    assert source.reason == "mig"
    (slice_source,) = meter(Fake(a=1), Clock(), "MIG-1").sources()
    assert slice_source.reason == "mig"
    fake.mig["GPU-a"] = 0
    assert meter(fake).sources()[0].label == "measured_counter"


def test_reset_stale_short_and_implausible() -> None:
    fake, clock = Fake(a=1_000_000), Clock()
    found = meter(fake, clock)

    def reason(seconds: float, delta: int) -> str | None:
        before = found.read()
        clock.now += seconds
        fake.energy["GPU-a"] += delta
        (domain,) = found.difference(before, found.read())
        assert domain.energy_j is None
        return meters.code(domain.reason)

    assert reason(1.0, -500_000) == "counter_reset"
    assert reason(1.0, 0) == "stale_counter"
    assert reason(0.05, 15_000) == "window_too_short"
    assert reason(1.0, 5_000_000) == "implausible"


def test_garbage_answer() -> None:
    fake = Fake(a=-1)
    assert meters.code(meter(fake).sources()[0].reason) == "implausible"


def test_unknown_power_limit_is_generous() -> None:
    fake, clock = Fake(a=0), Clock()
    fake.errors["limit"] = 3
    found = meter(fake, clock)
    before = found.read()
    clock.now, fake.energy["GPU-a"] = 1.0, 1_500_000
    assert found.difference(before, found.read())[0].energy_j == pytest.approx(1500.0)


def test_several_boards_and_none_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (source,) = meter(Fake(a=1, b=2)).sources()
    assert source.label == "unavailable"
    assert source.remedy is not None
    assert "UUID" in source.remedy.upper()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b")
    assert meter(Fake(a=1, b=2)).sources()[0].label == "measured_counter"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # an index of CUDA's is not one of NVML's
    assert meter(Fake(a=1, b=2)).sources()[0].label == "unavailable"


@pytest.mark.parametrize(
    ("visible", "label"),
    [("", "unavailable"), ("-1", "unavailable"), ("0", "measured_counter"), ("3", "unavailable")],
)
def test_visible_devices_on_a_machine_with_one_board(
    monkeypatch: pytest.MonkeyPatch, visible: str, label: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert meter(Fake(a=1)).sources()[0].label == label


def test_shortened_uuid_names_one_board() -> None:
    fake = Fake(abc1=1, abd2=2)
    assert meter(fake, Clock(), "GPU-abc").sources()[0].label == "measured_counter"
    assert meter(fake, Clock(), "GPU-ab").sources()[0].label == "unavailable"


def test_board_without_a_counter_is_sampled() -> None:
    fake, clock = Fake(a=0), Clock()
    fake.errors["energy"], fake.watts["GPU-a"] = 3, 200.0
    found = meter(fake, clock)
    assert found.sources()[0].label == "measured_sampled"
    (domain,) = found.difference(*record(found, found.sampler, clock, 10.0))
    assert (domain.label, domain.energy_j) == ("measured_sampled", pytest.approx(2000.0))
    assert domain.uncertainty_j == pytest.approx(2 * 0.5 * 200.0)
    assert found.max_gap_s() is not None


def test_counter_that_agrees_with_power_keeps_its_label() -> None:
    fake, clock = Fake(a=0), Clock()
    fake.watts["GPU-a"] = 200.0
    found = meter(fake, clock)

    def counted(at_s: float) -> None:
        fake.energy["GPU-a"] = round(at_s * 180_000)

    (domain,) = found.difference(*record(found, found.sampler, clock, 10.0, counted))
    assert (domain.label, domain.note) == ("measured_counter", None)


def test_tenants_are_noted() -> None:
    fake = Fake(a=1)
    assert meter(fake).sources()[0].note is None
    fake.tenants = 2
    assert "2 processes" in (meter(fake).sources()[0].note or "")


def test_library_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(nvml, "import_module", missing)
    found = nvml.open(MeterTools())
    (source,) = found.sources()
    assert (source.label, meters.code(source.reason)) == ("unavailable", "no_interface")
    (domain,) = found.difference(found.read(), found.read())
    assert domain.energy_j is None


def test_real_binding_without_a_driver() -> None:
    """Where there is no library the genuine pynvml says so; where there is one it may work."""
    (source, *_) = nvml.open(MeterTools()).sources()
    assert source.label in ("measured_counter", "unavailable")
    assert (source.reason is None) == (source.label == "measured_counter")


ASK = """
from autotune.meters import MeterTools, code, nvml
now = 0.0
meter = nvml.open(MeterTools(devices=("GPU-x",), clock=lambda: now, background=False))
meter.periods_s["nvml:gpu0"] = 0.02
first = meter.read()
now = 1.0
(domain,) = meter.difference(first, meter.read())
print(domain.energy_j, code(domain.reason))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small ``libnvidia-ml.so.1``, for the genuine binding to load."""
    return nvml_library(tmp_path_factory.mktemp("nvml"))


@pytest.mark.parametrize(
    ("faults", "shown"),
    [
        ({}, "100.0 None"),
        ({"STUB_INIT": "9"}, "None no_interface"),
        ({"STUB_HANDLE": "6"}, "None no_interface"),
        ({"STUB_ENERGY": "3"}, "None no_interface"),
        ({"STUB_ENERGY": "4"}, "None permission"),
        ({"STUB_MIG": "1"}, "None mig"),
    ],
)
def test_genuine_binding_on_a_stub_library(
    library: Path, faults: dict[str, str], shown: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env={**os.environ, "LD_LIBRARY_PATH": str(library), **faults},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == shown
