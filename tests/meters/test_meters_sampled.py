"""Sampled power: the sampler's thread, and the sysfs sensors that it serves."""

import time
from pathlib import Path

import pytest

from autotune import meters
from autotune.meters import Fault, Meter, MeterTools, _sampling, battery, hwmon, jetson
from autotune.meters._sampling import Sampled, Sampler, Sensor
from tests.support.energy_sim import Clock, only, record


def put(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")
    return folder


@pytest.fixture
def tools(tmp_path: Path) -> MeterTools:
    return MeterTools(sys=tmp_path, clock=Clock(), background=False)


def joules(meter: Sampled, tools: MeterTools, seconds: float = 60.0) -> dict[str, float | None]:
    assert isinstance(tools.clock, Clock)
    readings = record(meter, meter.sampler, tools.clock, seconds)
    return {d.name: d.energy_j for d in meter.difference(*readings)}


# -- jetson --------------------------------------------------------------------------------


def test_jetson_input_contains_its_rails(tools: MeterTools) -> None:
    chip = put(tools.sys / "class/hwmon/hwmon1", name="ina3221")
    put(chip, in1_label="VDD_IN", in1_input=5000, curr1_input=2000)
    put(chip, in2_label="VDD_GPU", in2_input=5000, curr2_input=800)
    put(chip, in7_label="sum of shunt voltages", in7_input=1, curr7_input=1)
    meter = jetson.open(tools)
    whole, rails = meter.sources()
    assert (whole.domains, whole.label, whole.scope) == (
        ("jetson:VDD_IN",),
        "measured_sampled",
        "machine",
    )
    assert (rails.domains, rails.scope) == (("jetson:VDD_GPU",), "rails")
    found = joules(meter, tools)
    assert found == {"jetson:VDD_GPU": pytest.approx(240), "jetson:VDD_IN": pytest.approx(600)}


def test_jetson_without_an_input_counts_all_rails(tools: MeterTools) -> None:
    chip = put(tools.sys / "bus/i2c/drivers/ina3221x/1-0040/iio:device0")
    put(chip, rail_name_0="GPU", in_power0_input=1500, rail_name_1="CPU", in_power1_input=2500)
    meter = jetson.open(tools)
    (source,) = meter.sources()
    assert source.domains == ("jetson:CPU", "jetson:GPU")
    assert sum(filter(None, joules(meter, tools).values())) == pytest.approx(240)


# -- hwmon ---------------------------------------------------------------------------------


def test_hwmon_counts_only_what_sees_the_whole_machine(tools: MeterTools) -> None:
    root = tools.sys / "class/hwmon"
    put(root / "hwmon0", name="power_meter", power1_average=80_000_000)
    supply = put(root / "hwmon1", name="corsairpsu", power1_label="power total")
    put(supply, power1_input=90_000_000, power2_label="power +12v", power2_input=50_000_000)
    put(root / "hwmon2", name="ina226", in1_input=12_000, curr1_input=500, in0_input=3)
    put(root / "hwmon3", name="ina3221", in1_input=1, curr1_input=1)
    put(root / "hwmon4", name="amdgpu", power1_average=1)
    put(root / "hwmon5", name="nvme", temp1_input=1)
    put(root / "hwmon6", name="ina226", in1_input=12_000, curr1_input=100)
    whole, rails = hwmon.open(tools).sources()
    assert whole.domains == ("hwmon:power_meter/power1", "hwmon:corsairpsu/power-total")
    assert rails.domains == (
        "hwmon:corsairpsu/power-+12v",
        "hwmon:ina226/in1",
        "hwmon:ina226/in1-2",
    )
    assert joules(hwmon.open(tools), tools)["hwmon:ina226/in1"] == pytest.approx(360.0)


def test_hwmon_faults_are_reported(tools: MeterTools) -> None:
    put(tools.sys / "class/hwmon/hwmon0", name="power_meter", power1_average="unknown")
    meter = hwmon.open(tools)
    (source,) = meter.sources()
    assert (source.label, meters.code(source.reason)) == ("unavailable", "implausible")
    assert joules(meter, tools) == {"hwmon:power_meter/power1": None}


# -- battery -------------------------------------------------------------------------------


def laptop(tools: MeterTools, **files: object) -> Sampled:
    put(tools.sys / "class/power_supply/AC", type="Mains", online=1)
    put(tools.sys / "class/power_supply/mouse", type="Battery", scope="Device")
    put(tools.sys / "class/power_supply/BAT0", type="Battery", **files)
    return battery.open(tools)


def test_battery_by_power(tools: MeterTools) -> None:
    meter = laptop(tools, status="Discharging", power_now=12_000_000)
    assert joules(meter, tools) == {"battery:BAT0": pytest.approx(720)}
    assert meter.sources()[0].scope == "machine"


def test_battery_by_current_and_voltage(tools: MeterTools) -> None:
    meter = laptop(tools, status="Discharging", current_now=-1_000_000, voltage_now=12_000_000)
    assert joules(meter, tools) == {"battery:BAT0": pytest.approx(720)}


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging", "Unknown", ""])
def test_battery_on_mains_measures_nothing(tools: MeterTools, status: str) -> None:
    meter = laptop(tools, status=status, power_now=12_000_000)
    (source,) = meter.sources()
    assert (source.label, meters.code(source.reason)) == ("unavailable", "no_interface")
    assert "unplug" in (source.remedy or "")
    assert joules(meter, tools) == {"battery:BAT0": None}


def test_charger_plugged_in_mid_window(tools: MeterTools) -> None:
    meter = laptop(tools, status="Discharging", power_now=12_000_000)
    assert isinstance(tools.clock, Clock)

    def plug(at_s: float) -> None:
        status = "Charging" if 20 <= at_s < 22 else "Discharging"
        put(tools.sys / "class/power_supply/BAT0", status=status)

    readings = record(meter, meter.sampler, tools.clock, 60.0, plug)
    assert only(meter.difference(*readings)).energy_j is None


def test_battery_without_any_number(tools: MeterTools) -> None:
    assert joules(laptop(tools, status="Discharging"), tools) == {"battery:BAT0": None}


@pytest.mark.parametrize("module", [battery, hwmon, jetson])
def test_machine_without(module: object, tools: MeterTools) -> None:
    meter: Meter = module.open(tools)  # type: ignore[attr-defined]
    (source,) = meter.sources()
    assert (source.label, meters.code(source.reason)) == ("unavailable", "no_interface")
    assert meter.difference(meter.read(), meter.read()) == ()
    assert meter.max_gap_s() is None


# -- the sampler ---------------------------------------------------------------------------


def test_no_power_at_all_is_not_zero_joules(tools: MeterTools) -> None:
    meter = laptop(tools, status="Discharging", power_now=0)
    (domain,) = meter.difference(*record(meter, meter.sampler, Clock(), 60.0))
    assert domain.energy_j is None


def wait(until: object, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not until() and time.monotonic() < end:  # type: ignore[operator]
        time.sleep(0.005)


def test_thread_samples_falls_asleep_and_wakes(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def watts() -> float:
        taken.append(1)
        return 100.0

    sampler = Sampler([Sensor("d", watts, 200.0, 0.1)], time.monotonic, period_s=0.001)
    assert taken == []
    first = sampler.read()["d"]
    assert isinstance(first, meters.Power)
    wait(lambda: len(taken) > 20)
    assert len(taken) > 20
    monkeypatch.setattr(_sampling, "_ASLEEP_S", 0.0)
    wait(lambda: not sampler._wanted.is_set())
    assert not sampler._wanted.is_set()
    slept = sampler.read()["d"]
    assert isinstance(slept, meters.Power)
    assert slept.breaks > first.breaks  # a window across the sleep has no energy
    assert sampler._thread is not None
    assert sampler._thread.daemon


def test_no_sensors_no_thread() -> None:
    sampler = Sampler([], Clock(), period_s=0.1)
    assert sampler.read() == {}
    assert sampler._thread is None


def test_a_domain_that_was_never_read() -> None:
    sensor = Sensor("d", lambda: 1.0, 10.0, 0.1)
    found = _sampling.domain(sensor, [meters.Reading(0.0, {}), meters.Reading(9.0, {})])
    assert meters.code(found.reason) == "no_interface"
    assert str(Fault("no_interface", "never read")) == found.reason
