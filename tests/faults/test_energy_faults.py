"""Everything that makes an energy look better than it is, by name.  Never 0 J for nothing read.

On simulated traces with a known integral, real temporary sysfs trees, simulated clocks and
one stub ``libnvidia-ml.so.1`` that is compiled here: no case needs hardware.
"""

import ast
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autotune import meters
from autotune.meters import Fault, MeterTools, _baseline, _sampling, hwmon, modelled, nvml, rapl
from autotune.parallel.single import Solo
from autotune.records import codec
from autotune.records.hardware import Profile
from autotune.records.job import Train
from autotune.records.measurement import Domain, EnergySource, EnergyWindow, Interval
from autotune.records.plan import Recipe
from autotune.records.task import TaskSpec
from autotune.stats import limit_tests
from autotune.worker.channel import NullChannel
from autotune.worker.energy import meter_client
from autotune.worker.energy import meter_server as process
from autotune.worker.training import train
from tests.support.energy_sim import (
    RANGE,
    Clock,
    Nvml,
    Tree,
    nvml_library,
    nvml_meter,
    only,
    record,
)


def nothing_read(window: EnergyWindow, reason: str) -> None:
    """No total, no zero, the reason by its word, in the record and in its JSON."""
    assert window.total_j is None
    assert window.label == "unavailable"
    assert meters.code(window.reason) == reason
    assert b'"total_j":null' in codec.encode(window).replace(b" ", b"")
    assert all(d.energy_j != 0 for d in window.domains)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "powercap")


# -- counters of the processor -----------------------------------------------------------------


def test_one_wrap(tree: Tree) -> None:
    tree.zone("intel-rapl:0", "package-0", RANGE - 5_000_000)
    assert tree.after(tree.meter(), z0=15_000_000).total_j == pytest.approx(20.0)


def test_two_wraps(tree: Tree) -> None:
    """10 kJ pass in 10 s at 1 kW: after a minute unread, nobody knows how often."""
    tree.zone("intel-rapl:0", "package-0", 0, limit=10_000_000_000)
    nothing_read(tree.after(tree.meter(), 60.0, z0=5_000_000_000), "wrap_ambiguous")


def test_two_wraps_with_guard_readings_are_exact(tree: Tree) -> None:
    tree.zone("intel-rapl:0", "package-0", 0, limit=10_000_000_000)
    meter = tree.meter()
    monitor = process.EnergyMonitor([meter], tree.clock)
    token = monitor.open()
    for second in range(2, 80, 2):  # 300 W for 78 s: 23.4 kJ
        tree.clock.now = float(second)
        tree.put("intel-rapl:0", second * 300_000_000 % 10_000_000_000)
        monitor.read_if_due()
    assert monitor.max_gap_s <= 2.5
    assert monitor.close(token).total_j == pytest.approx(78 * 300)


@pytest.mark.parametrize("limit", [None, "0", "many", ""])
def test_unreadable_range(tree: Tree, limit: str | None) -> None:
    tree.zone("intel-rapl:0", "package-0", limit=limit)
    nothing_read(tree.after(tree.meter(), z0=21_000_000), "wrap_ambiguous")


def test_reset(tree: Tree) -> None:
    tree.zone("intel-rapl:0", "package-0", 200_000_000_000)
    nothing_read(tree.after(tree.meter(), z0=1000), "counter_reset")


def test_eacces() -> None:
    """Really refused: root gives up its rights for the length of a reading."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        tree = Tree(Path(folder))
        (tree.zone("intel-rapl:0", "package-0") / "energy_uj").chmod(0)
        with unprivileged():
            meter = tree.meter()
            (source,) = meter.sources()
            before = meter.read()
            tree.clock.now += 1
            window = meters.window(1.0, meter.difference(before, meter.read()))
        nothing_read(window, "permission")
        assert "errno 13" in (source.reason or "")
        assert "chmod" in (source.remedy or "")
        assert "sudo" not in (source.remedy or "")


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root's right to read anything is given up."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(was)


def test_file_vanishing_mid_window(tree: Tree) -> None:
    folder = tree.zone("intel-rapl:0", "package-0")
    meter = tree.meter()
    before = meter.read()
    (folder / "energy_uj").unlink()
    tree.clock.now += 1
    nothing_read(meters.window(1.0, meter.difference(before, meter.read())), "no_interface")


def test_file_vanishing_and_coming_back_spoils_the_window(tree: Tree) -> None:
    folder = tree.zone("intel-rapl:0", "package-0")
    meter = tree.meter()
    monitor = process.EnergyMonitor([meter], tree.clock)
    token = monitor.open()
    (folder / "energy_uj").unlink()
    tree.clock.now = monitor.max_gap_s + 1
    monitor.read_if_due()
    tree.put("intel-rapl:0", 21_000_000)
    tree.clock.now += 1
    nothing_read(monitor.close(token), "no_interface")


@pytest.mark.parametrize("text", ["", "garbage", "-5", "1e6", "12 34", "0x10", str(RANGE + 1)])
def test_garbage_read(tree: Tree, text: str) -> None:
    tree.zone("intel-rapl:0", "package-0")
    nothing_read(tree.after(tree.meter(), z0=text), "implausible")


def test_partial_read_at_the_end(tree: Tree) -> None:
    """Only the first digits of 200 021 000 000 arrive."""
    tree.zone("intel-rapl:0", "package-0", 200_000_000_000)
    nothing_read(tree.after(tree.meter(), z0="200021"), "counter_reset")


def test_partial_read_at_the_start(tree: Tree) -> None:
    tree.zone("intel-rapl:0", "package-0", "200000")
    nothing_read(tree.after(tree.meter(), z0=200_021_000_000), "implausible")


def test_psys_is_kept_out(tree: Tree) -> None:
    tree.zone("intel-rapl:0", "package-0")
    tree.zone("intel-rapl:1", "psys")
    assert tree.after(tree.meter(), z0=21_000_000, z1=91_000_000).total_j == pytest.approx(20.0)


def test_nested_dram_on_two_sockets(tree: Tree) -> None:
    for socket in range(2):
        tree.zone(f"intel-rapl:{socket}", f"package-{socket}", 1000 + socket)
        tree.zone(f"intel-rapl:{socket}/intel-rapl:{socket}:0", "dram", 50 + socket)
    meter = tree.meter()
    window = tree.after(meter, z0=30_001_000, z1=40_001_001, z0_0=3_000_050, z1_0=4_000_051)
    assert window.total_j == pytest.approx(77.0)
    assert len({d.name for d in window.domains}) == 4


def test_msr_and_mmio_duplicate(tree: Tree) -> None:
    tree.zone("intel-rapl-mmio:0", "package-0", 5)
    tree.zone("intel-rapl:0", "package-0")
    window = tree.after(tree.meter(), z0=21_000_000, m0=20_000_005)
    assert window.total_j == pytest.approx(20.0)


def test_mirrored_dies(tree: Tree) -> None:
    for die in range(2):
        tree.zone(f"intel-rapl:{die}", f"package-0-die-{die}", 7_000_000)
    window = tree.after(tree.meter(), z0=27_000_000, z1=27_000_000)
    assert window.total_j == pytest.approx(20.0)


def test_mirrored_dies_that_move_between_their_readings(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One register behind two zones, and it ticks after the first is read."""
    for die in range(2):
        tree.zone(f"intel-rapl:{die}", f"package-0-die-{die}", 7_000_000)
    meter = tree.meter()
    register, reads = [7_000_000], [0]

    def ticking(zone: rapl.Zone) -> int:
        reads[0] += 1
        if reads[0] % 4 == 2:
            register[0] += 1000
        return register[0]

    monkeypatch.setattr(rapl, "_counter", ticking)
    before = meter.read()
    tree.clock.now += 1
    register[0] += 20_000_000
    domains = meter.difference(before, meter.read())
    assert [d.energy_j for d in domains] == [pytest.approx(20.0, rel=1e-3)]


def test_two_equal_idle_sockets_are_both_kept(tree: Tree) -> None:
    tree.zone("intel-rapl:0", "package-0", 7_000_000)
    tree.zone("intel-rapl:1", "package-1", 7_004_211)
    window = tree.after(tree.meter(), z0=17_000_000, z1=17_004_211)
    assert window.total_j == pytest.approx(20.0)
    assert len(window.domains) == 2


def test_core_and_uncore_are_kept_out(tree: Tree) -> None:
    tree.zone("intel-rapl:0", "package-0")
    tree.zone("intel-rapl:0/intel-rapl:0:0", "core")
    tree.zone("intel-rapl:0/intel-rapl:0:1", "uncore")
    window = tree.after(tree.meter(), z0=21_000_000, z0_0=13_000_000, z0_1=3_000_000)
    assert window.total_j == pytest.approx(20.0)


def test_stale_counter(tree: Tree) -> None:
    tree.zone("intel-rapl:0", "package-0")
    nothing_read(tree.after(tree.meter(), z0=1_000_000), "stale_counter")


def test_window_below_resolution(tree: Tree) -> None:
    tree.zone("intel-rapl:0", "package-0")
    window = tree.after(tree.meter(), 0.004, z0=1_080_000)
    nothing_read(window, "window_too_short")
    assert "below resolution" in (window.reason or "")
    assert "at least 0.006 s" in (window.reason or "")


def test_shortest_window_for_a_wanted_error(tree: Tree) -> None:
    """The function's window keeps the error that it promises, at worst."""
    tree.zone("intel-rapl:0", "package-0")
    seconds = meters.shortest_window(0.001, 0.02)
    window = tree.after(tree.meter(), seconds, z0=1_000_000 + round(seconds * 50e6))
    assert seconds == pytest.approx(0.1)
    assert (window.uncertainty_j or 9) / (window.total_j or 1) <= 0.0201


def test_implausible_2_5_mw(tree: Tree) -> None:
    tree.zone("intel-rapl:0", "package-0", 1_000_000)
    window = tree.after(tree.meter(), 0.1, z0=250_001_000_000)
    nothing_read(window, "implausible")
    assert "2500000 W" in (window.reason or "")


def test_implausible_2_5_mw_of_sampled_power() -> None:
    fake, clock = Nvml(a=0), Clock()
    fake.errors["energy"], fake.watts["GPU-a"] = 3, 100.0
    found = nvml_meter(fake, clock)

    def spike(at_s: float) -> None:
        fake.watts["GPU-a"] = 2.5e6 if 5.0 <= at_s < 5.06 else 100.0

    domain = only(found.difference(*record(found, found.sampler, clock, 10.0, spike)))
    nothing_read(meters.window(10.0, [domain]), "implausible")


# -- sampled power -----------------------------------------------------------------------------


def sensor(root: Path, clock: Clock) -> tuple[_sampling.Sampled, Callable[[float], None]]:
    """A power meter of the whole machine in a real sysfs tree, and what sets its watts."""
    chip = root / "class/hwmon/hwmon0"
    chip.mkdir(parents=True)
    (chip / "name").write_text("power_meter\n")

    def show(watts: float) -> None:
        (chip / "power1_average").write_text(f"{round(watts * 1e6)}\n")

    show(100.0)
    return hwmon.open(MeterTools(sys=root, clock=clock, background=False)), show


def test_constant_sampled_power(tmp_path: Path) -> None:
    clock = Clock()
    found, _ = sensor(tmp_path, clock)
    domain = only(found.difference(*record(found, found.sampler, clock, 20.0)))
    assert domain.energy_j == pytest.approx(2000.0)
    assert domain.label == "measured_sampled"
    assert domain.uncertainty_j == pytest.approx(2 * 1.0 * 100)


def test_stepped_sampled_power(tmp_path: Path) -> None:
    """100 W for 7.03 s, 300 W for 4 s, 100 W again: 2 800 J in 20 s, steps between samples."""
    clock = Clock()
    found, show = sensor(tmp_path, clock)

    def stepped(at_s: float) -> None:
        show(300.0 if 7.03 <= at_s < 11.03 else 100.0)

    domain = only(found.difference(*record(found, found.sampler, clock, 20.0, stepped)))
    assert domain.energy_j == pytest.approx(2800.0, abs=domain.uncertainty_j)
    assert domain.energy_j == pytest.approx(2800.0, abs=2 * 0.05 / 2 * 200 + 1e-6)
    assert domain.uncertainty_j is not None
    assert domain.uncertainty_j < 0.2 * 2800


def test_sampler_stalled(tmp_path: Path) -> None:
    """Three seconds without a sample, in which anything may have happened."""
    clock = Clock()
    found, show = sensor(tmp_path, clock)

    def hidden(at_s: float) -> None:
        show(900.0 if 8.1 <= at_s < 10.9 else 100.0)

    readings = record(found, found.sampler, clock, 20.0, hidden, silent=(8.0, 11.0))
    window = meters.window(20.0, found.difference(*readings))
    nothing_read(window, "stale_counter")
    assert "no sample for 3.0 s" in (window.reason or "")


def test_sampler_dead(tmp_path: Path) -> None:
    clock = Clock()
    found, _ = sensor(tmp_path, clock)
    readings = record(found, found.sampler, clock, 20.0, silent=(4.0, 99.0))
    nothing_read(meters.window(20.0, found.difference(*readings)), "stale_counter")
    again = record(found, found.sampler, clock, 20.0)  # the next window is a new one
    assert meters.window(20.0, found.difference(*again)).total_j == pytest.approx(2000.0)


def test_sampler_hanging_in_its_sensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    found, _ = sensor(tmp_path, clock)
    first = found.read()
    monkeypatch.setattr(_sampling, "_PATIENCE_S", 0.01)
    clock.now = 20.0
    with found.sampler._lock:  # as while the sensor does not answer
        last = found.read()
    nothing_read(meters.window(20.0, found.difference(first, last)), "stale_counter")


def test_sensor_vanishing_mid_window(tmp_path: Path) -> None:
    clock = Clock()
    found, show = sensor(tmp_path, clock)

    def gone(at_s: float) -> None:
        (tmp_path / "class/hwmon/hwmon0/power1_average").unlink(missing_ok=True)
        if not 5.0 <= at_s < 5.2:
            show(100.0)

    readings = record(found, found.sampler, clock, 20.0, gone)
    nothing_read(meters.window(20.0, found.difference(*readings)), "no_interface")


# -- NVML --------------------------------------------------------------------------------------

EACH_ERROR = """
import os, pynvml
from autotune.meters import MeterTools, code, nvml
now = 0.0
codes = sorted(v for n, v in vars(pynvml).items() if n.startswith("NVML_ERROR_"))
for call in ("STUB_INIT", "STUB_HANDLE", "STUB_ENERGY"):
    for number in codes:
        for late in (False, True):
            if late and call != "STUB_ENERGY":
                continue  # those are asked once, at the start
            os.environ[call] = "0" if late else str(number)
            tools = MeterTools(devices=("GPU-x",), clock=lambda: now, background=False)
            meter = nvml.open(tools)
            first = meter.read()
            os.environ[call], now = str(number), now + 5.0
            (domain,) = meter.difference(first, meter.read())
            print(call, number, late, domain.energy_j, code(domain.reason))
            del os.environ[call]
"""
ONCE = """
import os
from autotune.meters import MeterTools, code, nvml
now = 0.0
meter = nvml.open(MeterTools(devices=DEVICES, clock=lambda: now, background=False))
meter.periods_s["nvml:gpu0"] = 0.02
first = meter.read()
os.environ.update(LATER)
now = 5.0
for domain in meter.difference(first, meter.read()):
    print(domain.energy_j, domain.label, code(domain.reason))
print(meter.sources()[0].label, meter.sources()[0].reason)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nvml_library(tmp_path_factory.mktemp("nvml"))


def genuine(library: Path, script: str, **env: str) -> list[str]:
    """What a script prints where the genuine pynvml loads the stub."""
    around = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    around |= {"LD_LIBRARY_PATH": str(library), **env}
    done = subprocess.run(
        [sys.executable, "-c", script], env=around, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def once(devices: object = ("GPU-x",), **later: str) -> str:
    return ONCE.replace("DEVICES", repr(devices)).replace("LATER", repr(later))


def test_each_nvml_error(library: Path) -> None:
    """Every error number of the genuine binding, in every call, before and within a window."""
    lines = [line.split() for line in genuine(library, EACH_ERROR)]
    assert len(lines) >= 4 * 20
    for call, number, late, energy, reason in lines:
        expected = "permission" if number == "4" else "no_interface"
        assert (energy, reason) == ("None", expected), (call, number, late)


def test_nvml_counter_alone(library: Path) -> None:
    """The stub itself is sound: 100 J between two readings."""
    assert genuine(library, once())[0] == "100.0 measured_counter None"


def test_nvml_backwards(library: Path) -> None:
    assert genuine(library, once(STUB_BACK="1"))[0] == "None unavailable counter_reset"


def test_nvml_without_a_counter_is_sampled(library: Path) -> None:
    shown = genuine(library, once(), STUB_ENERGY="3", STUB_POWER="0")
    assert shown[1] == "measured_sampled None"
    assert shown[0] == "None unavailable stale_counter"  # 5 s without a sample: no thread here


def test_counter_against_power_43_percent_apart() -> None:
    """The counter claims 57 % of what power says: trusted less, and its range reaches both."""
    fake, clock = Nvml(a=0), Clock()
    fake.watts["GPU-a"] = 300.0
    found = nvml_meter(fake, clock)

    def counted(at_s: float) -> None:
        fake.energy["GPU-a"] = round(at_s * 171_000)

    domain = only(found.difference(*record(found, found.sampler, clock, 20.0, counted)))
    assert domain.label == "measured_sampled"
    assert domain.energy_j == pytest.approx(3420.0)
    assert (domain.uncertainty_j or 0) >= 6000 - 3420 - 1e-6
    assert "43% apart" in (domain.note or "")
    window = meters.window(20.0, [domain])
    assert window.label == "measured_sampled"
    assert any("43% apart" in note for note in window.notes)


def test_uuid_in_cuda_visible_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's device 0 is the board that was named first, wherever NVML lists it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b,GPU-a")
    fake, clock = Nvml(a=0, b=0), Clock()
    found = nvml_meter(fake, clock)
    first = found.read()
    clock.now, fake.energy["GPU-b"], fake.energy["GPU-a"] = 5.0, 1_000_000, 250_000
    zero, one = found.difference(first, found.read())
    assert (zero.name, zero.energy_j) == ("nvml:gpu0", pytest.approx(1000.0))
    assert (one.name, one.energy_j) == ("nvml:gpu1", pytest.approx(250.0))


@pytest.mark.parametrize("value", ["", " ", "-1", "NoDevFiles"])
def test_empty_cuda_visible_devices(library: Path, value: str) -> None:
    shown = genuine(library, once(None), CUDA_VISIBLE_DEVICES=value)
    assert shown[0] == "None unavailable no_interface"
    assert "hides every GPU" in shown[1]


def test_index_in_cuda_visible_devices_names_no_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    found = nvml_meter(Nvml(a=1, b=2))
    nothing_read(meters.window(1.0, found.difference(found.read(), found.read())), "no_interface")


def test_mig_in_cuda_visible_devices(library: Path) -> None:
    shown = genuine(library, once(None), CUDA_VISIBLE_DEVICES="MIG-11111111-2222")
    assert shown == ["None unavailable mig", "unavailable mig"]


def test_board_split_by_mig(library: Path) -> None:
    shown = genuine(library, once(), STUB_MIG="1")
    assert shown == ["None unavailable mig", "unavailable mig"]


# -- windows -----------------------------------------------------------------------------------


class Steady:
    """A counter of ``watts`` on a clock that the test moves."""

    def __init__(self, name: str = "rapl:package-0") -> None:
        self.clock = Clock()
        self.name = name
        self.joules = 0.0
        self.reads = 0
        self.periods_s = {name: 0.001}

    def run(self, seconds: float, watts: float) -> None:
        self.clock.now += seconds
        self.joules += seconds * watts

    def read(self) -> meters.Reading:
        self.reads += 1
        return meters.Reading(self.clock.now, {self.name: round(self.joules * 1e6)})

    def sources(self) -> tuple[EnergySource, ...]:
        return (EnergySource(name="rapl", domains=(self.name,), label="measured_counter"),)

    def difference(self, *readings: meters.Reading) -> tuple[Domain, ...]:
        first, last = readings[0].counters[self.name], readings[-1].counters[self.name]
        assert isinstance(first, int)
        assert isinstance(last, int)
        seconds, joules = readings[-1].at_s - readings[0].at_s, (last - first) * 1e-6
        more: dict[str, Any] = {"period_s": 0.001, "quantum_j": 0.0, "max_w": 1000.0}
        return (meters.conclude(self.name, joules, seconds, **more),)

    def max_gap_s(self) -> float | None:
        return None


def with_load(steady: Steady, foreign: float) -> EnergyWindow:
    """Ten seconds at 50 W on two cores, of which ours uses 6 CPU seconds."""
    loads = iter([process.CpuTimes(0, 0, 0), process.CpuTimes(6.0 + 20 * foreign, 20.0, 6.0)])
    monitor = process.EnergyMonitor([steady], steady.clock, cpu_times=lambda pid: next(loads))
    token = monitor.open(1)
    steady.run(10.0, 50.0)
    return monitor.close(token, 1)


def test_50_percent_foreign_load() -> None:
    window = with_load(Steady(), 0.5)
    nothing_read(window, "foreign_load")
    assert "50%" in (window.reason or "")


def test_10_percent_foreign_load_is_noted_and_3_percent_is_not() -> None:
    found_window = with_load(Steady(), 0.10)
    assert found_window.total_j == pytest.approx(500.0)
    assert any("10%" in note for note in found_window.notes)
    assert with_load(Steady(), 0.03).notes == ()


def test_foreign_load_of_the_processor_is_not_in_a_boards_joules() -> None:
    assert with_load(Steady("nvml:gpu0"), 0.5).total_j == pytest.approx(500.0)


def windows(steady: Steady, *powers: float) -> list[EnergyWindow]:
    """Ten seconds at each power, a window for each."""
    found = []
    monitor = process.EnergyMonitor([steady], steady.clock)
    for watts in powers:
        token = monitor.open()
        steady.run(10.0, watts)
        found.append(monitor.close(token))
    return found


def test_idle_baseline_before_and_after() -> None:
    before, work, after = windows(Steady(), 20.0, 50.0, 20.0)
    found = _baseline.dynamic(work, before, after)
    assert (found.total_j, found.dynamic_j) == (pytest.approx(500.0), pytest.approx(300.0))
    assert found.idle_w == pytest.approx(20.0)
    assert found.notes == ()


def test_drifting_idle() -> None:
    """20 W before and 30 W after: found_window, and half of the drift is in the half-width."""
    before, work, after = windows(Steady(), 20.0, 50.0, 30.0)
    found = _baseline.dynamic(work, before, after)
    assert found.dynamic_j == pytest.approx(250.0)
    assert (found.dynamic_uncertainty_j or 0) >= 50.0
    assert any("drifted from 20 W to 30 W" in note for note in found.notes)


def test_negative_dynamic_energy() -> None:
    before, work, after = windows(Steady(), 60.0, 50.0, 60.0)
    found = _baseline.dynamic(work, before, after)
    assert found.total_j == pytest.approx(500.0)  # budgets are on the total
    assert found.dynamic_j == pytest.approx(-100.0)  # as it is, not 0
    assert any("negative" in note for note in found.notes)


def test_idle_that_cannot_be_read_gives_no_dynamic_energy() -> None:
    before, work, _ = windows(Steady(), 20.0, 50.0, 20.0)
    gone = meters.window(10.0, [meters.unavailable("rapl:package-0", Fault("permission"))])
    found = _baseline.dynamic(work, before, gone)
    assert (found.total_j, found.dynamic_j) == (pytest.approx(500.0), None)
    assert any("permission" in note for note in found.notes)


MODEL = """
import torch
from torch.utils.data import TensorDataset
def make_model():
    return torch.nn.Linear(4, 2)
def train_data():
    return TensorDataset(torch.zeros(32, 4), torch.zeros(32).long())
def eval_data():
    return train_data()
"""


def test_8_ranks_billed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All eight train; one window is opened, its joules stand in one answer."""
    steady = Steady()
    monitor = process.EnergyMonitor([steady], steady.clock)
    opened: list[int] = []

    class Client:
        def __init__(self, path: str) -> None:
            pass

        def __enter__(self) -> "Client":
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def open(self) -> int:
            opened.append(monitor.open())
            return opened[-1]

        def close(self, token: int) -> EnergyWindow:
            steady.run(10.0, 50.0)
            return monitor.close(token)

    monkeypatch.setattr(meter_client, "MeterClient", Client)
    (tmp_path / "model.py").write_text(MODEL)
    answers = []
    for rank in range(8):
        group = Solo("cpu", 0.0)
        group.rank, group.world = rank, 8  # type: ignore[misc]
        job = Train(
            task=TaskSpec(kind="file", path=str(tmp_path / "model.py")),
            recipe=Recipe(batch_size=16),
            epochs=1,
            meter="meter.sock",
        )
        answers.append(train.fit(job, tmp_path, NullChannel(), group))
    assert len(opened) == 1
    billed = [a.energy.total_j for a in answers if a.energy is not None]
    assert billed == [pytest.approx(500.0)]


def test_ranks_are_no_foreign_load_to_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 names its launcher: the tree below it is all eight."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert meter_client._tree() == os.getpid()
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert meter_client._tree() == os.getppid()


def test_overlapping_windows_read_the_counter_once_each() -> None:
    """Eight windows over the same ten seconds see the same joules, and none adds to another."""
    steady = Steady()
    monitor = process.EnergyMonitor([steady], steady.clock)
    tokens = [monitor.open() for _ in range(8)]
    steady.run(10.0, 50.0)
    assert [monitor.close(token).total_j for token in tokens] == [pytest.approx(500.0)] * 8


def test_whole_machine_and_parts_are_not_added() -> None:
    """A battery sees what RAPL sees: it stands beside, outside the total."""
    parts = EnergySource(name="rapl", domains=("rapl:package-0",), label="measured_counter")
    whole = EnergySource(
        name="battery", domains=("battery:BAT0",), label="measured_sampled", scope="machine"
    )
    counts = process._counted([parts, whole])
    assert (counts("rapl:package-0"), counts("battery:BAT0")) == (True, False)
    refused = msgspec.structs.replace(parts, label="unavailable", reason="permission")
    counts = process._counted([refused, whole])
    assert (counts("rapl:package-0"), counts("battery:BAT0")) == (False, True)


def test_wall_clock_jump(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock goes back a day within the window: nothing in the meters looks at it."""
    assert MeterTools().clock is time.monotonic
    tree.zone("intel-rapl:0", "package-0")
    meter = tree.meter()
    before = meter.read()
    monkeypatch.setattr(time, "time", lambda: -86_400.0)
    monkeypatch.setattr(time, "time_ns", lambda: -86_400_000_000_000)
    tree.clock.now += 1
    tree.put("intel-rapl:0", 21_000_000)
    window = meters.window(1.0, meter.difference(before, meter.read()))
    assert (window.total_j, window.duration_s) == (pytest.approx(20.0), 1.0)
    files = [*Path(meters.__file__).parent.glob("*.py"), Path(process.__file__)]
    for file in files:
        names = {
            n.attr for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Attribute)
        }
        assert not names & {"time_ns", "now", "utcnow", "gettimeofday"}, file.name
        assert "time.time(" not in file.read_text(), file.name


# -- no measurement ----------------------------------------------------------------------------


def test_modelled_is_never_met() -> None:
    """However far inside the limit: without the user's word a model decides nothing."""
    for high in (1e-9, 0.5, 2.0):
        said = Interval(value=high / 2, low=high / 4, high=high)
        for label in ("unavailable", "modelled_tdp", "modelled_calibrated"):
            found = limit_tests.energy([None], 1.0, label=label, modelled=said)  # type: ignore[arg-type]
            assert (found.verdict, found.estimate) == ("NOT_MEASURED", None)


def test_accepted_model_says_that_it_is_one() -> None:
    inside = Interval(value=0.5, low=0.25, high=1.5)
    found = limit_tests.energy(
        [None], 1.0, label="unavailable", modelled=inside, accept_modelled=True
    )
    assert found.verdict == "UNDECIDED"
    assert "modelled" in found.source


def test_unknown_cpu(profile: Profile) -> None:
    """No name is looked up: an unknown processor gets the prior, its wide range and its label."""
    found = set()
    for name in (None, "Quantum 9000", "AMD EPYC 7763", "Xeon"):
        cpu = msgspec.structs.replace(profile.cpu, model=name)
        interval, label = modelled.energy(msgspec.structs.replace(profile, cpu=cpu), 1.0, 1.0)
        found.add((interval.value, interval.low, interval.high, label))
    assert len(found) == 1
    value, low, high, label = found.pop()
    assert label == "modelled_tdp"
    assert (low, high) == (value / 2, value * 2)


def test_no_source(tmp_path: Path) -> None:
    """A guest with nothing: no joules, the reason, what helps, and no zero anywhere."""
    (tmp_path / "cpuinfo").write_text("flags : fpu hypervisor\n")
    tools = MeterTools(powercap=tmp_path / "none", sys=tmp_path, proc=tmp_path, background=False)
    monitor = process.EnergyMonitor(process.meters(tools, cuda=False))
    nothing_read(monitor.close(monitor.open()), "vm_guest")
    sources = {source.name: source for source in monitor.sources()}
    assert set(sources) == {"rapl", "modelled"}
    assert sources["rapl"].label == "unavailable"
    assert "--powercap-root" in (sources["rapl"].remedy or "")


def test_no_meter_at_all() -> None:
    monitor = process.EnergyMonitor([])
    nothing_read(monitor.close(monitor.open()), "no_interface")


def test_gpu_that_cannot_be_read_leaves_no_total(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processor's joules alone are not those of a plan that also runs on a board."""
    tree.zone("intel-rapl:0", "package-0")
    fake = Nvml(a=1)
    fake.errors["init"] = 9
    board = nvml.open(MeterTools(nvml=fake, clock=tree.clock, background=False))
    monitor = process.EnergyMonitor([tree.meter(), board], tree.clock)
    token = monitor.open()
    tree.clock.now = 1.0
    tree.put("intel-rapl:0", 21_000_000)
    nothing_read(monitor.close(token), "no_interface")
