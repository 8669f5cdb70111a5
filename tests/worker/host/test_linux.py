"""Readers on trees of /proc and /sys written by hand."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from autotune.worker.host import linux


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


V2 = "30 20 0:25 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw\n"


def v2(root: Path, **files: str) -> None:
    put(root, {"proc/self/cgroup": "0::/a/b\n", "proc/self/mountinfo": V2})
    put(root, {f"sys/fs/cgroup/{name}": text for name, text in files.items()})


def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 kB, of which 600 are available."""
    found = SimpleNamespace(total=1000 * 1024, available=600 * 1024)
    monkeypatch.setattr("psutil.virtual_memory", lambda: found)


def test_quota_of_every_ancestor_v2(tmp_path: Path) -> None:
    v2(tmp_path, **{"a/cpu.max": "150000 100000\n", "a/b/cpu.max": "max 100000\n"})
    assert linux.usable_cores(tmp_path, 8) == 1.5
    put(tmp_path, {"sys/fs/cgroup/a/b/cpu.max": "50000 100000"})
    assert linux.usable_cores(tmp_path, 8) == 0.5


@pytest.mark.parametrize("text", ["", "max", "max 100000", "0 100000", "x y", "1 0"])
def test_no_quota(tmp_path: Path, text: str) -> None:
    v2(tmp_path, **{"a/b/cpu.max": text})
    assert linux.usable_cores(tmp_path, 8) == 8.0


def test_cpuset_v2_and_affinity(tmp_path: Path) -> None:
    v2(tmp_path, **{"a/b/cpuset.cpus.effective": "0-2,7\n"})
    assert linux.usable_cores(tmp_path, 8) == 4.0
    assert linux.usable_cores(tmp_path, 3) == 3.0


def test_v1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = "".join(
        f"{i} 20 0:{i} / /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}\n"
        for i, name in enumerate(("cpu", "cpuset", "memory"))
    )
    put(
        tmp_path,
        {
            "proc/self/mountinfo": mounts,
            "proc/self/cgroup": "4:memory:/m\n3:cpuset:/s\n1:cpu:/c/d\n",
            "sys/fs/cgroup/cpu/c/d/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/c/d/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpu/c/cpu.cfs_quota_us": "250000",
            "sys/fs/cgroup/cpu/c/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpu/c/cpu.stat": "nr_periods 9\nnr_throttled 4\n",
            "sys/fs/cgroup/cpuset/s/cpuset.effective_cpus": "1-3",
            "sys/fs/cgroup/memory/m/memory.limit_in_bytes": "9223372036854771712",
        },
    )
    assert linux.usable_cores(tmp_path, 8) == 2.5
    memory(monkeypatch)
    assert linux.usable_memory_bytes(tmp_path) == 600 * 1024
    put(tmp_path, {"sys/fs/cgroup/memory/memory.limit_in_bytes": "1000"})
    assert linux.usable_memory_bytes(tmp_path) == 1000


def test_memory_limit_v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    v2(tmp_path, **{"a/b/memory.max": "max", "a/memory.max": "5000"})
    memory(monkeypatch)
    assert linux.usable_memory_bytes(tmp_path) == 5000


def test_container_that_sees_a_part_of_the_hierarchy(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "proc/self/mountinfo": "1 2 0:1 /docker/x /sys/fs/cgroup rw - cgroup2 c rw\n",
            "proc/self/cgroup": "0::/docker/x/job\n",
            "sys/fs/cgroup/job/cpu.max": "70000 100000",
        },
    )
    assert linux.usable_cores(tmp_path, 4) == 0.7
    put(tmp_path, {"proc/self/cgroup": "0::/../elsewhere\n", "sys/fs/cgroup/cpu.max": "3 10"})
    assert linux.usable_cores(tmp_path, 4) == 0.3


def test_caches_and_nodes(tmp_path: Path) -> None:
    cpus = "sys/devices/system/cpu"
    sizes = [(1, "Data", "48K"), (1, "Instruction", "32K"), (2, "Unified", "1024K")]
    for index, (level, kind, size) in enumerate([*sizes, (3, "Unified", "32M")]):
        folder = f"{cpus}/cpu0/cache/index{index}"
        put(
            tmp_path,
            {f"{folder}/level": str(level), f"{folder}/type": kind, f"{folder}/size": size},
        )
    (tmp_path / "sys/devices/system/node/node0").mkdir(parents=True)
    assert linux.numa_nodes(tmp_path) == 1
    assert linux.caches(tmp_path) == (48 << 10, 1 << 20, 32 << 20)


def test_cpuinfo(tmp_path: Path) -> None:
    text = "processor: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nflags\t: avx2 fma\n"
    put(tmp_path, {"proc/cpuinfo": text + "\nprocessor: 1\nmodel name: other\n"})
    assert linux.cpuinfo(tmp_path) == ("AuthenticAMD", "AMD EPYC", frozenset({"avx2", "fma"}))
    assert linux.virtualised(tmp_path) is False
    put(tmp_path, {"proc/cpuinfo": "flags : hypervisor\n"})
    assert linux.virtualised(tmp_path) is True


def test_what_cannot_be_read_is_none(tmp_path: Path) -> None:
    for reader in (
        linux.virtualised,
        linux.numa_nodes,
        linux.governor,
        linux.peak_memory_bytes,
        linux.threads,
    ):
        assert reader(tmp_path) is None
    assert linux.caches(tmp_path) == (None, None, None)
    assert linux.cpuinfo(tmp_path) == (None, None, frozenset())
    assert linux.usable_cores(tmp_path, 2) == 2.0


def test_this_process_and_the_governor(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "proc/self/status": "Name: x\nVmHWM:\t  2048 kB\nThreads:\t5\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
        },
    )
    assert linux.peak_memory_bytes(tmp_path) == 2048 * 1024
    assert linux.threads(tmp_path) == 5.0
    assert linux.governor(tmp_path) == "performance"


def test_ranges() -> None:
    assert linux.ranges("0-2,5") == {0, 1, 2, 5}
    assert linux.ranges("a-b") == set()
    assert linux.ranges("") == set()


def test_this_machine() -> None:
    assert 0 < linux.usable_cores() <= (os.cpu_count() or 1)
    assert (linux.physical_cores() or 1) >= 1
    assert 0 < linux.usable_memory_bytes() <= linux.memory_bytes()
    affinity = linux.affinity()
    assert affinity is None or affinity >= 1
