"""Who kept the floor, who was best, and what the benchmark then says."""

import math
from pathlib import Path

import pytest

from benchmarks.deploy import __main__ as deploy
from benchmarks.deploy import judge, peers, prepare
from benchmarks.deploy import rows as deploy_rows
from benchmarks.deploy.judge import Quality, outcome, quality, summary
from benchmarks.deploy.race import ratio, turns, typical

FINE = Quality(0.9, 0.0, 0.004)


def launches(seconds: float, *noise: float) -> list[list[float]]:
    return [[seconds * (1 + n), seconds * (1 + n)] for n in noise or (0.0, 0.01, -0.01, 0.0, 0.0)]


def test_a_shared_drift_leaves_the_ratio_alone() -> None:
    drift = (0.0, 0.3, 0.1, 0.5, 0.2)
    found = ratio(launches(1e-3, *drift), launches(2e-3, *drift))
    assert found.value == pytest.approx(0.5)
    assert found.low == pytest.approx(found.high)


def test_bounds_are_students_one_sided_95() -> None:
    ours = [[math.exp(x)] for x in (0.1, 0.2, 0.3)]
    found = ratio(ours, [[1.0]] * 3)
    half = 2.91999 * 0.1 / math.sqrt(3)  # t(0.95, 2 degrees)
    assert math.log(found.low) == pytest.approx(0.2 - half, abs=1e-5)
    with pytest.raises(ValueError, match="1 launches"):
        ratio([[1.0]], [[1.0]])


def test_a_peer_that_breaks_the_floor_is_not_the_best() -> None:
    broken = Quality(0.8, 0.1, 0.12)
    raced = {"autotune": launches(1e-3), "fast": launches(5e-4), "slow": launches(2e-3)}
    found = outcome(raced, {"autotune": FINE, "fast": broken, "slow": FINE})
    assert found.best == "slow"
    assert found.speedup == pytest.approx(2.0)
    assert not found.failures


def test_only_a_slowdown_beyond_noise_fails() -> None:
    known = {"autotune": FINE, "peer": FINE}
    sure = outcome({"autotune": launches(1.1e-3), "peer": launches(1e-3)}, known)
    assert "slower than peer" in sure.failures[0]
    noisy = launches(1.1e-3, -0.2, 0.2, -0.1, 0.1, 0.0)
    assert not outcome({"autotune": noisy, "peer": launches(1e-3)}, known).failures


def test_a_plan_that_breaks_the_floor_fails_and_so_does_none() -> None:
    raced = {"autotune": launches(1e-3), "peer": launches(2e-3)}
    found = outcome(raced, {"autotune": Quality(0.8, 0.02, 0.03), "peer": FINE})
    assert "fell by 2.00 points" in found.failures[0]
    del raced["autotune"]
    assert outcome(raced, {"peer": FINE}).failures == ("autotune gave no plan",)


def test_quality_is_paired_by_row() -> None:
    dense = [1.0] * 900 + [0.0] * 100
    worse = [0.0] * 3 + [1.0] * 897 + [0.0] * 100
    found = quality(worse, dense)
    assert found.drop == pytest.approx(0.003)
    assert found.kept
    assert found.certified
    assert not quality([0.0] * 20 + [1.0] * 880 + [0.0] * 100, dense).kept


def contestant(seconds: float, kept: bool = True) -> dict[str, object]:
    drop = 0.0 if kept else 0.2
    return {
        "title": "one", "launches": launches(seconds), "p50_s": seconds,
        "quality": [0.9 - drop, drop, drop + 0.001],
    }  # fmt: skip


def row(model: str, ours: float, peer: float) -> dict[str, object]:
    return {
        "model": model, "batch": 1, "threads": 2, "test_rows": 1000, "plan": "eager",
        "tried": 3, "search_s": 9.0,
        "contestants": {
            "peer": contestant(peer), "cheat": contestant(1e-6, kept=False),
            "odd": {"title": "odd", "failure": "no operator"}, "autotune": contestant(ours),
        },
    }  # fmt: skip


def test_the_claims_are_over_all_models() -> None:
    lines, good = summary([row("a", 1e-3, 2e-3), row("b", 1e-3, 1e-3)])
    assert good
    assert "1.41x faster" in lines[1]
    lines, good = summary([row("a", 1e-3, 4e-3), row("b", 2e-3, 1e-3)])
    assert not good
    assert "not on b" in lines[0]
    assert not summary([])[1]


def test_the_table_shows_everybody() -> None:
    text = "\n".join(judge.table(row("a", 1e-3, 2e-3)))
    assert "BROKEN" in text
    assert "failed: no operator" in text
    assert "0.500x" in text
    assert text.endswith("PASS")


class Clocked:
    """A contestant whose every block takes longer than the one before it."""

    def __init__(self, order: list[str], name: str) -> None:
        self._order, self._name = order, name

    def ask(self, block: float) -> dict[str, float]:
        self._order.append(self._name)
        return {"p50_s": (2.0 if self._name == "b" else 1.0) * 1.1 ** len(self._order)}


def test_turns_go_there_and_back_so_that_a_drift_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.deploy.race.PAUSE_S", 0.0)
    order: list[str] = []
    alive = {name: Clocked(order, name) for name in "abc"}
    medians = turns(alive, 1, 2, 0.1)
    assert "".join(order) == "bcaacb" * 2
    assert medians["b"][0] / medians["a"][0] == pytest.approx(2.0)
    assert typical([medians["a"]]) == pytest.approx(1.1**3.5 * 1.1**6 / 1.1**3)


def test_rows_come_in_order_and_unknown_names_are_refused() -> None:
    everything = deploy.jobs([], [], quick=False)
    assert len(everything) == 16
    assert {batch for _, batch in everything[:8]} == {1}
    assert len(deploy.jobs([], [], quick=True)) == 3
    assert deploy.jobs(["gru"], [64], quick=False) == [("gru", 64)]
    with pytest.raises(deploy.RowError, match="no such model"):
        deploy.jobs(["vgg"], [], quick=False)


def test_rows_of_another_source_or_setting_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy_rows, "FOLDER", tmp_path)
    setting = deploy.Setting()
    made = {
        **row("mlp", 1e-3, 2e-3), **setting._asdict(),
        "code": deploy_rows.code(), "software": peers.software(),
    }  # fmt: skip
    deploy_rows.keep(made | {"model": "gru", "code": "another"})
    deploy_rows.keep(made)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"torn')
    assert list(deploy_rows.stored(setting)) == [("mlp", 1)]
    assert not deploy_rows.stored(setting._replace(time_s=60.0))


def test_rows_to_score_are_spread_over_all_of_them() -> None:
    spread = prepare.spread
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(4, None) == spread(4, 9) == [0, 1, 2, 3]


def test_what_a_search_tells_hides_no_setting() -> None:
    plan = {"deployment": {"compress": [], "runtime": "eager"}}
    report = {"chosen": {"plan": plan}, "search_cost": {"trials": 7}, "verdicts": []}
    found = deploy_rows._summary(report)
    assert found["tried"] == 7
    assert not set(found) & set(deploy.Setting._fields)
