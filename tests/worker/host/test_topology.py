"""The processor's layout on hand-written trees."""

from pathlib import Path

import pytest

from autotune.worker.host import topology
from autotune.worker.machine import profile

CPUS = "sys/devices/system/cpu"


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def cpus(root: Path, places: list[tuple[int, int, str]]) -> None:
    """(package, core, thread siblings) of each logical processor."""
    for number, (package, core, siblings) in enumerate(places):
        folder = f"{CPUS}/cpu{number}"
        put(root, {
            f"{folder}/topology/physical_package_id": f"{package}\n",
            f"{folder}/topology/core_id": f"{core}\n",
            f"{folder}/topology/thread_siblings_list": f"{siblings}\n",
            f"{folder}/cache/index3/level": "3",
            f"{folder}/cache/index3/shared_cpu_list": f"{package}",
        })  # fmt: skip


def test_nothing_is_none(tmp_path: Path) -> None:
    assert topology.sockets(tmp_path) is None
    assert topology.threads_per_core(tmp_path) is None
    assert topology.core_kinds(tmp_path) is None
    assert topology.l3_count(tmp_path) is None
    assert topology.clocks(tmp_path) == {}


def test_two_sockets_with_smt(tmp_path: Path) -> None:
    cpus(tmp_path, [(0, 0, "0,2"), (1, 0, "1,3"), (0, 0, "0,2"), (1, 0, "1,3")])
    assert (topology.sockets(tmp_path), topology.threads_per_core(tmp_path)) == (2, 2)
    assert topology.l3_count(tmp_path) == 2
    assert topology.core_kinds(tmp_path) is None


def test_hybrid_cores_of_intel(tmp_path: Path) -> None:
    """Two performance cores with two threads each, four efficiency cores."""
    fast = [(0, 0, "0-1"), (0, 0, "0-1"), (0, 4, "2-3"), (0, 4, "2-3")]
    cpus(tmp_path, [*fast, *((0, 8 + i, str(4 + i)) for i in range(4))])
    put(tmp_path, {"sys/devices/cpu_core/cpus": "0-3", "sys/devices/cpu_atom/cpus": "4-7"})
    assert topology.core_kinds(tmp_path) == (2, 4)
    found = profile.processor(tmp_path)
    assert (found.performance_cores, found.efficiency_cores, found.threads_per_core) == (2, 4, 2)


@pytest.mark.parametrize(("capacities", "kinds"), [
    ([1024, 1024, 446, 446], (2, 2)), ([1024, 1024], None), ([1024, 871, 250, 250], (1, 3)),
])  # fmt: skip
def test_big_and_little_cores_of_arm(
    tmp_path: Path, capacities: list[int], kinds: tuple[int, int] | None
) -> None:
    cpus(tmp_path, [(0, i, str(i)) for i in range(len(capacities))])
    for number, value in enumerate(capacities):
        put(tmp_path, {f"{CPUS}/cpu{number}/cpu_capacity": f"{value}\n"})
    assert topology.core_kinds(tmp_path) == kinds


def test_clocks_are_the_fastest_cores(tmp_path: Path) -> None:
    for number, rate in enumerate((5_800_000, 4_300_000)):
        put(tmp_path, {f"{CPUS}/cpu{number}/cpufreq/cpuinfo_max_freq": f"{rate}\n"})
    put(tmp_path, {f"{CPUS}/cpu0/cpufreq/base_frequency": "3000000"})
    found = {name: leaf.value for name, leaf in topology.clocks(tmp_path).items()}
    assert found == {"base_clock_hz": 3e9, "max_clock_hz": 5.8e9}
