"""RAPL's faults on real temporary trees and a simulated clock.  Never 0 J for nothing read."""

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune import meters
from autotune.meters import Fault, Reading, rapl
from autotune.records.measurement import Domain
from tests.support.energy_sim import RANGE, Tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "powercap", origin="simulated")


def one(tree: Tree, meter: rapl.Rapl, energy: object, seconds: float = 1.0) -> Domain:
    """The only domain of a window that ends with this counter."""
    before = meter.read()
    tree.clock.now += seconds
    tree.put("intel-rapl:0", energy)
    (found,) = meter.difference(before, meter.read())
    return found


def test_package_energy(tree: Tree) -> None:
    tree.zone("intel-rapl:0", "package-0")
    found = one(tree, tree.meter(), 21_000_000)
    assert found.energy_j == pytest.approx(20.0)
    assert (found.name, found.label, found.origin) == (
        "rapl:package-0",
        "measured_counter",
        "simulated",
    )
    assert found.uncertainty_j == pytest.approx(0.04, rel=0.01)


def test_one_wrap(tree: Tree) -> None:
    tree.zone("intel-rapl:0", "package-0", RANGE - 5_000_000)
    assert one(tree, tree.meter(), 15_000_000).energy_j == pytest.approx(20.0)


def test_two_wraps_are_ambiguous(tree: Tree) -> None:
    tree.zone("intel-rapl:0", "package-0", 0, limit=10_000_000_000)
    found = one(tree, tree.meter(), 5_000_000_000, seconds=60.0)  # 10 kJ pass in 10 s at 1 kW
    assert found.energy_j is None
    assert meters.code(found.reason) == "wrap_ambiguous"


def test_guard_readings_resolve_wraps(tree: Tree) -> None:
    tree.zone("intel-rapl:0", "package-0", 0, limit=10_000_000_000)
    meter = tree.meter()
    guard = meter.max_gap_s()
    assert guard == pytest.approx(2.5)
    readings = [meter.read()]
    for step in range(1, 101):  # 2 s at 300 W each: 60 kJ, six wraps
        tree.clock.now += 2.0
        tree.put("intel-rapl:0", step * 600_000_000 % 10_000_000_000)
        readings.append(meter.read())
    (found,) = meter.difference(*readings)
    assert found.energy_j == pytest.approx(60_000.0)


def test_reset(tree: Tree) -> None:
    tree.zone("intel-rapl:0", "package-0", 200_000_000_000)
    found = one(tree, tree.meter(), 1000)
    assert (found.energy_j, meters.code(found.reason)) == (None, "counter_reset")


def test_implausible_power(tree: Tree) -> None:
    tree.zone("intel-rapl:0", "package-0")
    found = one(tree, tree.meter(), 100_000_000_000)
    assert (found.energy_j, meters.code(found.reason)) == (None, "implausible")


@pytest.mark.parametrize("limit", [None, "0", "many"])
def test_unreadable_range_proves_nothing(tree: Tree, limit: str | None) -> None:
    tree.zone("intel-rapl:0", "package-0", limit=limit)
    meter = tree.meter()
    assert meters.code(meter.sources()[0].reason) == "wrap_ambiguous"
    assert one(tree, meter, 21_000_000).energy_j is None
    backwards = one(tree, meter, 5)
    assert (backwards.energy_j, meters.code(backwards.reason)) == (None, "counter_reset")


@pytest.mark.parametrize("text", ["", "garbage", "-5", "1e6", str(RANGE + 1)])
def test_garbage(tree: Tree, text: str) -> None:
    tree.zone("intel-rapl:0", "package-0")
    found = one(tree, tree.meter(), text)
    assert (found.energy_j, meters.code(found.reason)) == (None, "implausible")


def test_vanished_file(tree: Tree) -> None:
    folder = tree.zone("intel-rapl:0", "package-0")
    meter = tree.meter()
    before = meter.read()
    (folder / "energy_uj").unlink()
    tree.clock.now += 1
    (found,) = meter.difference(before, meter.read())
    assert found.energy_j is None
    assert found.reason is not None
    assert found.reason.startswith("no_interface: errno 2")
    assert meter.sources()[0].label == "unavailable"


def test_permission_names_errno_and_remedy(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.zone("intel-rapl:0", "package-0")
    real = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "energy_uj":
            raise PermissionError(13, os.strerror(13))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root may read anything
    meter = tree.meter()
    (source,) = meter.sources()
    assert source.label == "unavailable"
    assert source.reason is not None
    assert source.reason.startswith("permission: errno 13")
    assert source.remedy is not None
    assert "chmod" in source.remedy
    assert "sudo" not in source.remedy
    before = meter.read()
    tree.clock.now += 1
    (found,) = meter.difference(before, meter.read())
    assert (found.energy_j, meters.code(found.reason)) == (None, "permission")


def test_stale_counter_and_short_window(tree: Tree) -> None:
    tree.zone("intel-rapl:0", "package-0")
    meter = tree.meter()
    assert one(tree, meter, 1_000_000).reason == "stale_counter"
    short = one(tree, meter, 1_050_000, seconds=0.004)
    assert (short.energy_j, meters.code(short.reason)) == (None, "window_too_short")


def test_psys_core_and_uncore_are_kept_out(tree: Tree) -> None:
    tree.zone("intel-rapl:0", "package-0")
    tree.zone("intel-rapl:0/intel-rapl:0:0", "core")
    tree.zone("intel-rapl:0/intel-rapl:0:1", "uncore")
    tree.zone("intel-rapl:1", "psys")
    assert tree.meter().sources()[0].domains == ("rapl:package-0",)


def test_only_psys_is_no_source(tree: Tree) -> None:
    tree.zone("intel-rapl:1", "psys")
    (source,) = tree.meter().sources()
    assert (source.label, meters.code(source.reason)) == ("unavailable", "no_interface")


def test_nested_dram_on_two_sockets(tree: Tree) -> None:
    for socket in range(2):
        tree.zone(f"intel-rapl:{socket}", f"package-{socket}", 1000 + socket)
        tree.zone(f"intel-rapl:{socket}/intel-rapl:{socket}:0", "dram", 50 + socket)
    meter = tree.meter()
    before = meter.read()
    tree.clock.now += 1
    for socket in range(2):
        tree.put(f"intel-rapl:{socket}", 30_001_000 + socket)
        tree.put(f"intel-rapl:{socket}/intel-rapl:{socket}:0", 3_000_050 + socket)
    window = meters.window(1.0, meter.difference(before, meter.read()))
    assert [d.name for d in window.domains] == [
        "rapl:package-0",
        "rapl:package-0/dram",
        "rapl:package-1",
        "rapl:package-1/dram",
    ]
    assert window.total_j == pytest.approx(66.0)


def test_flat_and_nested_names_of_one_zone_count_once(tree: Tree) -> None:
    nested = tree.zone("intel-rapl/intel-rapl:0", "package-0")
    tree.zone("intel-rapl/intel-rapl:0/intel-rapl:0:0", "dram")
    (tree.root / "intel-rapl:0").symlink_to(nested)
    (tree.root / "intel-rapl:0:0").symlink_to(nested / "intel-rapl:0:0")
    (nested / "subsystem").symlink_to(tree.root)
    assert tree.meter().sources()[0].domains == ("rapl:package-0", "rapl:package-0/dram")


def test_flat_copy_of_a_class_folder_keeps_drams_apart(tree: Tree) -> None:
    for socket in range(2):
        tree.zone(f"intel-rapl:{socket}", f"package-{socket}")
        tree.zone(f"intel-rapl:{socket}:0", "dram")
    assert tree.meter().sources()[0].domains == (
        "rapl:package-0",
        "rapl:package-0/dram",
        "rapl:package-1",
        "rapl:package-1/dram",
    )


def test_mmio_duplicate_is_dropped(tree: Tree) -> None:
    tree.zone("intel-rapl-mmio:0", "package-0", 5)
    tree.zone("intel-rapl:0", "package-0")
    found = one(tree, tree.meter(), 21_000_000)
    assert found.energy_j == pytest.approx(20.0)


def test_mmio_serves_where_msr_cannot_be_read(tree: Tree) -> None:
    (tree.zone("intel-rapl:0", "package-0") / "energy_uj").unlink()
    tree.zone("intel-rapl-mmio:0", "package-0")
    assert tree.meter().sources()[0].label == "measured_counter"


@pytest.mark.parametrize(
    ("second", "after", "domains"),
    [(1_000_000, 21_000_000, 1), (1_000_001, 21_000_001, 2), (1_000_000, 21_000_001, 2)],
    ids=["value-and-delta", "delta-only", "value-only"],
)
def test_mirror(tree: Tree, second: int, after: int, domains: int) -> None:
    tree.zone("intel-rapl:0", "package-0")
    tree.zone("intel-rapl:1", "package-1", second)
    meter = tree.meter()
    before = meter.read()
    tree.clock.now += 1
    tree.put("intel-rapl:0", 21_000_000)
    tree.put("intel-rapl:1", after)
    assert len(meter.difference(before, meter.read())) == domains


def test_dies_of_one_package(tree: Tree) -> None:
    tree.zone("intel-rapl:0", "package-0-die-0")
    tree.zone("intel-rapl:1", "package-0-die-1")
    assert len(tree.meter().sources()[0].domains) == 2


def test_guest_without_a_tree(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor: 0\nflags\t\t: fpu hypervisor avx2\n")
    (source,) = tree.meter(origin="local", proc=tmp_path).sources()
    assert (source.label, source.reason) == ("unavailable", "vm_guest")
    assert source.remedy == (
        "ask the host for its powercap tree and pass --powercap-root DIR; "
        "or pass --accept-modelled-energy"
    )
    meter = tree.meter(origin="local", proc=tmp_path)
    assert meter.difference(meter.read(), meter.read()) == ()
    assert meter.max_gap_s() is None


def test_metal_without_a_tree(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx2\n")
    (source,) = tree.meter(origin="local", proc=tmp_path).sources()
    assert meters.code(source.reason) == "no_interface"
    (nothing,) = tree.meter(origin="local", proc=tmp_path / "none").sources()
    assert meters.code(nothing.reason) == "no_interface"


def test_named_tree_that_is_empty(tree: Tree) -> None:
    (source,) = tree.meter().sources()
    assert source.remedy is not None
    assert "--powercap-root DIR" in source.remedy


def test_fault_as_text() -> None:
    assert str(Fault("mig")) == "mig"
    assert str(Fault("permission", "errno 13")) == "permission: errno 13"
    assert meters.code(None) is None


@given(
    start=st.integers(0, RANGE - 1),
    steps=st.lists(st.integers(0, 900_000_000), min_size=1, max_size=20),
)
def test_counters_stay_true_and_non_negative_across_wraps(start: int, steps: list[int]) -> None:
    """Whatever the start, steps of under 1 kW for a second add up to exactly themselves."""
    zone = rapl.Zone("rapl:package-0", Path(), RANGE, 1000.0)
    readings = [Reading(0.0, {zone.domain: start})]
    for second, step in enumerate(steps, start=1):
        before = readings[-1].counters[zone.domain]
        assert isinstance(before, int)
        readings.append(Reading(float(second), {zone.domain: (before + step) % RANGE}))
    found = [rapl._step(zone, a, b) for a, b in pairwise(readings)]
    assert found == steps


@given(st.integers(0, RANGE), st.integers(0, RANGE), st.floats(0.0, 1e4))
def test_no_pair_of_readings_gives_a_negative_step(first: int, last: int, gap_s: float) -> None:
    zone = rapl.Zone("rapl:package-0", Path(), RANGE, 1000.0)
    before, after = Reading(0.0, {zone.domain: first}), Reading(gap_s, {zone.domain: last})
    step = rapl._step(zone, before, after)
    assert isinstance(step, Fault) or step >= 0
