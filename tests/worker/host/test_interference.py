"""What surrounds a measurement, from real temporary trees."""

from pathlib import Path

import pytest

from autotune.worker.host import interference
from autotune.worker.host.interference import Counters


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


CGROUP = {
    "proc/self/cgroup": "0::/\n",
    "proc/self/mountinfo": "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n",
}


def test_only_usable_processors_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 2})
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    text = (
        "cpu  9 9 9 9 9 9 9 9\n"
        "cpu0 100 0 50 800 50 0 0 10 0 0\n"
        "cpu1 999999 0 0 0 0 0 0 0 0 0\n"
        "cpu2 200 0 0 700 0 0 0 20 0 0\n"
    )
    found = interference.counters(tree(tmp_path, {"proc/stat": text}))
    assert found.steal_s == pytest.approx(0.3)
    assert found.busy_s == pytest.approx(3.5)
    assert found.total_s == pytest.approx(19.3)
    assert found.nr_throttled is None
    assert found.throttled_s is None


@pytest.mark.parametrize(
    "text", ["", "cpu0 1 2 3\n", "cpu0 a b c d e f g h\n", "cpu0 0 0 0 0 0 0 0 0"]
)
def test_what_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    assert interference.counters(tree(tmp_path, {"proc/stat": text})) == Counters()


def test_throttling_of_version_1_and_its_ancestors(tmp_path: Path) -> None:
    """Numbers of a group and of the one above it add up."""
    files = {
        "proc/self/cgroup": "1:cpu:/a/b\n",
        "proc/self/mountinfo": "1 0 0:1 / /cg rw - cgroup cgroup rw,cpu\n",
        "cg/a/cpu.stat": "nr_throttled 4\nthrottled_time 250000000\n",
        "cg/a/b/cpu.stat": "nr_throttled 1\nthrottled_time 500000000\n",
    }
    found = interference.counters(tree(tmp_path, files))
    assert (found.nr_throttled, found.throttled_s) == (5, 0.75)


def test_throttling_of_version_2(tmp_path: Path) -> None:
    stat = "usage_usec 5\nnr_throttled 7\nthrottled_usec 250000\n"
    found = interference.counters(tree(tmp_path, CGROUP | {"sys/fs/cgroup/cpu.stat": stat}))
    assert (found.nr_throttled, found.throttled_s) == (7, 0.25)


def test_growth() -> None:
    before = Counters(1.0, 10.0, 100.0, 3, 0.5)
    after = Counters(1.2, 11.5, 102.0, 5, 0.6)
    found = interference.grown(before, after, 1.0)
    assert found["foreign_load"] == pytest.approx(0.25)
    assert found["steal_share"] == pytest.approx(0.1)
    assert found["nr_throttled"] == 2.0
    assert found["throttled_s"] == pytest.approx(0.1)


def test_shares_of_a_window_that_is_too_short_are_unknown() -> None:
    found = interference.grown(Counters(0, 0, 0, 0, 0), Counters(0, 0.1, 0.1, 0, 0), 0.0)
    assert found["foreign_load"] is None
    assert found["steal_share"] is None
    assert set(interference.grown(Counters(), Counters(), 1.0).values()) == {None}


def test_our_own_work_is_not_foreign() -> None:
    found = interference.grown(Counters(0, 0, 0, 0, 0), Counters(0, 2.0, 4.0, 0, 0), 2.1)
    assert found["foreign_load"] == 0.0


def test_state(tmp_path: Path) -> None:
    empty = interference.state(tmp_path)
    assert empty["governor"] is empty["turbo"] is empty["smt"] is empty["temperature_c"] is None
    cpu = "sys/devices/system/cpu"
    root = tree(
        tmp_path,
        {
            f"{cpu}/intel_pstate/no_turbo": "1\n",
            f"{cpu}/smt/active": "1\n",
            f"{cpu}/cpu0/cpufreq/scaling_governor": "performance\n",
            "sys/class/thermal/thermal_zone0/temp": "41000\n",
            "sys/class/thermal/thermal_zone1/temp": "garbage\n",
        },
    )
    found = interference.state(root)
    assert (found["turbo"], found["smt"], found["governor"]) == ("off", "on", "performance")
    assert found["temperature_c"] == 41.0
    (root / cpu / "intel_pstate/no_turbo").unlink()
    tree(root, {f"{cpu}/cpufreq/boost": "1\n"})
    assert interference.state(root)["turbo"] == "on"
