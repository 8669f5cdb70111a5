"""Intervals over launches, and what n_eff does at its edges."""

import math

import numpy as np
import pytest

from autotune.stats import launch_ratio, limit_tests, quantile


def test_intervals_need_two_launches() -> None:
    assert launch_ratio.mean_interval([1.0]) is None
    assert launch_ratio.next_interval([]) is None
    wide = launch_ratio.mean_interval([1.0, 2.0, 9.0])
    assert wide is not None
    assert wide.low == 0.0, "a rate is no less"
    mean = launch_ratio.mean_interval([1.0, 2.0, 3.0])
    one_more = launch_ratio.next_interval([1.0, 2.0, 3.0])
    assert mean is not None
    assert one_more is not None
    assert mean.value == 2.0
    assert mean.high - 2.0 == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert one_more.value == 3.0
    assert one_more.low == 0.0  # bytes are never below
    assert one_more.high == pytest.approx(2.0 + 4.3027 * math.sqrt(4 / 3), rel=1e-4)


def test_launches_of_unequal_length_are_paired_within_themselves() -> None:
    rng = np.random.default_rng(0)
    levels = [rng.normal(level, 0.1, size) for level, size in ((1, 3), (5, 400), (9, 1), (2, 900))]
    found = quantile.Tail(levels, 95)
    assert found.rank_inflation == 1.0  # launches differ, which each launch's own quantile shows
    assert len(found) == 1304
    assert (
        quantile.Tail([], 95).rank_inflation
        == quantile.Tail([[1.0], [2.0]], 95).rank_inflation
        == 1.0
    )


def test_a_trend_is_worth_little() -> None:
    found = quantile.Tail([np.linspace(1, 2, 500)] * 3, 95)
    assert found.rank_inflation > 50
    assert limit_tests.latency(found.runs, 3.0, 95).verdict == "UNDECIDED"


def test_exceedances_lie_between_nothing_and_the_correlation() -> None:
    grid = np.linspace(0, 1, 21)
    for over in (0.5, 0.05, 0.01, 0.001):
        values = quantile._exceedances(grid, over)
        assert values[0] == 0
        assert values[-1] == pytest.approx(1, abs=1e-3)
        assert (np.diff(values) > 0).all()
        assert (values <= grid + 1e-6).all()
    # P(X > 0, Y > 0) = 1/4 + asin(r) / 2 pi
    assert quantile._exceedances(0.5, 0.5) == pytest.approx(math.asin(0.5) * 2 / math.pi, abs=1e-5)
