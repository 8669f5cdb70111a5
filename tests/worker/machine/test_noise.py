"""Foreign load while probing: counted on a hand-written /proc/stat; two rounds pooled."""

import os
import time
from pathlib import Path

import pytest

from autotune.records.hardware import Leaf
from autotune.worker.machine import noise


def stat(root: Path, busy: int, idle: int, steal: int) -> None:
    """Ticks of every processor that this process may use, summed."""
    numbers = sorted(os.sched_getaffinity(0))
    lines = [f"cpu{n} {busy} 0 0 {idle} 0 0 0 {steal} 0 0" for n in numbers]
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/stat").write_text("\n".join(["cpu 0", *lines]) + "\n")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
def test_shares_of_what_others_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise.time, "process_time", lambda: 0.0)
    stat(tmp_path, 100, 1000, 0)
    load = noise.ForeignLoad(tmp_path)
    stat(tmp_path, 160, 1030, 10)
    found = {name: leaf.value for name, leaf in load.leaves().items()}
    assert found == {"foreign_load": pytest.approx(0.6), "steal_share": pytest.approx(0.1)}
    assert all(leaf.unit == "1" for leaf in load.leaves().values())


def test_what_cannot_be_read_is_absent(tmp_path: Path) -> None:
    assert noise.ForeignLoad(tmp_path).leaves() == {}


def rate(value: float | None, **more: float) -> Leaf:
    return Leaf(value=value, unit="B/s", source="measured", samples=7, **more)  # type: ignore[arg-type]


def test_two_rounds_are_one_leaf_with_both_ends() -> None:
    first = {"a": rate(10.0, low=9.0, high=11.0), "b": rate(1.0)}
    pooled = noise.pooled(first, {"a": rate(12.0, low=11.5, high=12.5), "c": rate(5.0)})
    assert set(pooled) == {"a", "b"}
    a = pooled["a"]
    assert (a.value, a.low, a.high, a.samples) == (11.0, 9.0, 12.5, 14)
    assert noise.pooled(first, {"a": rate(None)})["a"] == first["a"]


def test_clean_samples_are_preferred_and_the_fastest_half_is_the_remedy() -> None:
    clean, slow = noise.Sample(1.0, True), noise.Sample(5.0, False)
    assert noise.best([clean, slow, clean, slow, clean]) == [1.0, 1.0, 1.0]
    assert noise.best([clean, slow, slow, slow]) == [1.0, 5.0]


def test_a_call_that_waits_is_not_clean() -> None:
    assert not noise.timed(lambda: time.sleep(0.005)).clean


def test_a_call_has_a_positive_time() -> None:
    assert noise.timed(lambda: None).seconds > 0
