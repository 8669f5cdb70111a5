"""What the training benchmark makes of its rows."""

import math
from typing import Any

import pytest

from benchmarks.train import report as train

Rows = dict[tuple[str, str, int], dict[str, Any]]


def rows(*, ours: float, theirs: float, found_s: float | None, half: float | None = None) -> Rows:
    """Three seeds of one set, whose qualities lie 0.001 apart from seed to seed."""
    out: Rows = {}
    for seed in range(3):
        shift = 0.001 * seed
        known = {"autotune": ours, "half": ours if half is None else half}
        for arm in train.ARMS:
            value = known.get(arm, theirs) + shift * (1 if arm == "autotune" else 0.9)
            row = {"set": "digits", "arm": arm, "seed": seed, "budget_s": 40.0}
            out["digits", arm, seed] = {**row, "quality": value, "wall_s": 18.0}
        reach = {"target": 0.9, "plain_s": 8.0, "found_s": found_s, "best_s": 4.0}
        row = {"set": "digits", "arm": "reach", "seed": seed, "budget_s": 40.0}
        out["digits", "reach", seed] = {**row, **reach}
    return out


def test_all_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.report(rows(ours=0.95, theirs=0.9, found_s=2.0), ("digits",)) == 0
    said = capsys.readouterr().out
    assert "100% of 3 runs" in said
    assert "found over plain: 0.25" in said
    assert "for the best quality: 0.50" in said
    assert "all kept" in said


@pytest.mark.parametrize(
    ("case", "line"),
    [
        (
            {"ours": 0.9, "theirs": 0.95, "found_s": 2.0, "half": 0.96},
            "digits: autotune is below plain beyond noise",
        ),
        (
            {"ours": 0.95, "theirs": 0.9, "found_s": 2.0, "half": 0.8},
            "half of T is not enough in the median",
        ),
        (
            {"ours": 0.95, "theirs": 0.9, "found_s": None},  # counts as all of T
            "the found recipe takes over half of the plain one's time",
        ),
    ],
)
def test_what_is_missed_is_said(
    case: dict[str, Any], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.report(rows(**case), ("digits",)) == 1
    assert f"MISSED: {line}" in capsys.readouterr().out


def test_a_row_that_took_too_long_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(ours=0.95, theirs=0.9, found_s=2.0)
    found["digits", "half", 0]["wall_s"] = 23.0  # of 20
    assert train.report(found, ("digits",)) == 1
    assert "1 rows took over 1.1 T" in capsys.readouterr().out


def test_the_interval_is_students() -> None:
    mean, half = train.interval([0.0, 1.0, 2.0])
    assert mean == 1.0
    assert half == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
