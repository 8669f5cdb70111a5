"""A container of 1.5 CPUs and 2 GB on a host of 8: it reports just that, and under taskset."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from autotune.worker.host import linux
from autotune.worker.machine import profile

GB = 1000**3
ASK = """
import os, sys
from pathlib import Path
from autotune.worker.host import linux
os.sched_setaffinity(0, {int(sys.argv[2])})
print(linux.usable_cores(Path(sys.argv[1])), linux.usable_memory_bytes(Path(sys.argv[1])))
"""


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def host(root: Path) -> None:
    put(root, {
        "proc/cpuinfo": "vendor_id: GenuineIntel\nmodel name: Xeon\nflags: hypervisor avx2\n",
    })  # fmt: skip


def v2(root: Path) -> None:
    """The mount shows only the container's part; the limits are its parent's and its own."""
    host(root)
    put(root, {
        "proc/self/cgroup": "0::/docker/abc/run\n",
        "proc/self/mountinfo":
            "30 20 0:25 /docker /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n",
        "sys/fs/cgroup/abc/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/abc/run/cpu.max": "max 100000\n",
        "sys/fs/cgroup/abc/memory.max": f"{2 * GB}\n",
        "sys/fs/cgroup/abc/run/memory.max": "max\n",
    })  # fmt: skip


def v1(root: Path) -> None:
    host(root)
    mounts = "".join(
        f"{i} 20 0:{i} /docker/abc /sys/fs/cgroup/{name} ro - cgroup cgroup rw,{name}\n"
        for i, name in enumerate(("cpu", "memory"))
    )
    put(root, {
        "proc/self/cgroup": "4:memory:/docker/abc\n1:cpu:/docker/abc\n",
        "proc/self/mountinfo": mounts,
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GB}",
    })  # fmt: skip


@pytest.mark.parametrize("tree", [v2, v1])
def test_it_reports_just_that(
    tmp_path: Path, tree: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(tree)
    tree(tmp_path)
    monkeypatch.setattr(linux, "affinity", lambda: 8)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=12 * GB))
    cpu = profile.processor(tmp_path)
    assert (cpu.usable_cores, cpu.virtualised) == (1.5, True)
    assert linux.usable_memory_bytes(tmp_path) == 2 * GB
    assert profile.name(cpu, ()) == "xeon-1.5c"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
@pytest.mark.parametrize("tree", [v2, v1])
def test_affinity_is_a_limit_beside_the_quota(tmp_path: Path, tree: object) -> None:
    """As under ``taskset -c N``: one processor is less than 1.5."""
    assert callable(tree)
    tree(tmp_path)
    one = min(os.sched_getaffinity(0))
    command = [sys.executable, "-c", ASK, str(tmp_path), str(one)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1.0", str(2 * GB)]
