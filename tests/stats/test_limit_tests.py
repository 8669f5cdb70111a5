"""Verdicts: exact where they claim to be, and never better than proved."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.records.measurement import Interval, Scores
from autotune.stats import launch_ratio, limit_tests, non_inferiority, paired, quantile

FAST = settings(deadline=None, max_examples=60)


def split(values: list[float], parts: int = 3) -> list[list[float]]:
    return [values[i::parts] for i in range(parts)]


def binary(ones: list[float]) -> Scores:
    return Scores(quality=sum(ones) / len(ones), rows=len(ones), per_sample=tuple(ones))


def changed(rows: int, worse: int, better: int) -> tuple[Scores, Scores]:
    """Candidate and baseline that differ in ``worse`` and ``better`` rows."""
    baseline = [1.0] * (rows - better) + [0.0] * better
    candidate = [0.0] * worse + [1.0] * (rows - worse)
    return binary(candidate), binary(baseline)


# -- latency -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("percentile", "alpha", "needed"),
    [(95, 0.005, 104), (99, 0.005, 528), (95, 0.01, 90), (99, 0.01, 459)],
)
def test_the_threshold_is_exact(percentile: float, alpha: float, needed: int) -> None:
    assert quantile.samples_needed(percentile, alpha) == needed
    for n, expected in ((needed - 1, "UNDECIDED"), (needed, "MET")):
        found = limit_tests.latency(split([0.001] * n), 0.002, percentile, alpha=alpha)
        assert found.verdict == expected
        assert found.samples == n
    assert found.confidence == 1 - alpha


def test_one_missing_call_is_asked_for() -> None:
    found = limit_tests.latency(split([0.001] * 103), 0.002, 95)
    assert found.note is not None
    assert "more calls would decide" in found.note


def test_no_samples_is_not_measured() -> None:
    for launches in ([], [[], []]):
        found = limit_tests.latency(launches, 0.002, 95)
        assert found.verdict == "NOT_MEASURED"
        assert found.estimate is None


def test_met_needs_three_launches_and_each_of_them() -> None:
    assert limit_tests.latency(split([0.001] * 600, 2), 0.002, 95).verdict == "UNDECIDED"
    slow = [0.001] * 90 + [0.003] * 10
    rng = np.random.default_rng(0)
    launches = [[0.001] * 900, [0.001] * 900, list(rng.permutation(slow))]
    found = limit_tests.latency(launches, 0.002, 95)
    assert found.verdict == "UNDECIDED"
    assert found.note is not None
    assert "launch 3 alone" in found.note


def test_slow_calls_break_the_limit() -> None:
    found = limit_tests.latency(split([0.003] * 30), 0.002, 95)
    assert found.verdict == "NOT_MET"
    assert found.lower == 0.003


def test_at_the_limit_nothing_decides() -> None:
    launches = [([0.001] * 19 + [0.003]) * 10] * 3
    found = limit_tests.latency(launches, 0.002, 95)
    assert found.verdict == "UNDECIDED"
    assert found.note is not None
    assert "another limit" in found.note


def test_bursts_count_less() -> None:
    scattered = ([0.001] * 99 + [0.003]) * 3
    bursts = [0.001] * 297 + [0.003] * 3
    assert limit_tests.latency([scattered] * 3, 0.002, 95).note is None
    found = limit_tests.latency([bursts] * 3, 0.002, 95)
    assert found.note is not None
    assert "effective sample size" in found.note
    assert found.verdict == "UNDECIDED"


@FAST
@given(
    st.lists(st.floats(0.001, 0.02), min_size=3, max_size=400),
    st.floats(0.0005, 0.03),
    st.floats(0.3, 1.0),
    st.sampled_from([50.0, 90.0, 95.0]),
)
def test_tightening_never_turns_not_met_into_met(
    values: list[float], limit: float, factor: float, percentile: float
) -> None:
    loose = limit_tests.latency(split(values), limit, percentile)
    tight = limit_tests.latency(split(values), limit * factor, percentile)
    assert not (loose.verdict == "NOT_MET" and tight.verdict == "MET")
    assert not (loose.verdict == "UNDECIDED" and tight.verdict == "MET")


@FAST
@given(st.lists(st.floats(0.001, 0.02), min_size=3, max_size=400), st.floats(0.0005, 0.03))
def test_the_verdict_agrees_with_its_bounds(values: list[float], limit: float) -> None:
    found = limit_tests.latency(split(values), limit, 90)
    if found.verdict == "MET":
        assert found.upper is not None
        assert found.upper <= limit
    if found.verdict == "NOT_MET":
        assert found.estimate is not None
        assert found.estimate > limit
    if found.lower is not None and found.upper is not None:
        assert found.lower <= found.upper


def test_coverage_of_the_quantile_bounds() -> None:
    """The true quantile is outside each bound in at most alpha of the runs (+ sampling error)."""
    rng = np.random.default_rng(1)
    truth = math.exp(0.4 * 1.2815515655446004)  # p90 of lognormal(0, 0.4)
    misses = 0
    for _ in range(400):
        found = limit_tests.latency(rng.lognormal(0, 0.4, (3, 80)).tolist(), 1.0, 90, alpha=0.05)
        assert found.lower is not None
        assert found.upper is not None
        misses += (found.lower > truth) + (found.upper < truth)
    assert 10 <= misses <= 55  # expected at most 40, and not absurdly few


def test_false_met_is_rare_at_the_boundary() -> None:
    rng = np.random.default_rng(2)
    truth = math.exp(0.4 * 1.6448536269514722)
    runs = [
        limit_tests.latency(rng.lognormal(0, 0.4, (3, 100)).tolist(), truth, 95, alpha=0.05).verdict
        for _ in range(400)
    ]
    assert runs.count("MET") <= 28
    assert runs.count("NOT_MET") <= 28


def test_quantiles() -> None:
    order = np.random.default_rng(6).permutation(500) + 1.0
    found = quantile.quantiles([list(order), []], 90)
    assert found is not None
    assert (found.p50, found.p95, found.p99, found.samples) == (250, 475, 495, 500)
    assert (found.value, found.percentile) == (450, 90)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 450 < found.high
    assert quantile.quantiles([[]], 95) is None
    few = quantile.quantiles([[1.0]], 95)
    assert few is not None
    assert few.high is None
    with pytest.raises(ValueError, match="no values"):
        quantile.point_quantile([], 95)
    assert quantile.point_quantile([3.0, 1.0, 2.0], 50) == 2.0


# -- energy, memory, scalars ---------------------------------------------------------------


def test_energy_from_a_counter() -> None:
    found = limit_tests.energy(
        [0.0101, 0.0100, 0.0099],
        0.02,
        label="measured_counter",
        uncertainty=0.0001,
        origin="simulated",
        domains=("rapl:package-0",),
    )
    assert found.verdict == "MET"
    assert found.source == "measured_counter (simulated): rapl:package-0"
    assert found.upper is not None
    assert found.upper > 0.0102
    broken = limit_tests.energy([0.0101, 0.0100, 0.0099], 0.005, label="measured_counter")
    assert broken.verdict == "NOT_MET"
    near = limit_tests.energy([0.02, 0.01, 0.015], 0.0151, label="measured_counter")
    assert near.verdict == "UNDECIDED"
    assert near.note is not None
    coarse = limit_tests.energy(
        [0.01, 0.01, 0.01], 0.0105, label="measured_counter", uncertainty=0.004
    )
    assert coarse.verdict == "UNDECIDED"
    assert coarse.note is not None
    assert "resolution" in coarse.note
    assert limit_tests.energy([0.01], 0.02, label="measured_counter").verdict == "UNDECIDED"


def test_energy_never_measured() -> None:
    model = Interval(value=0.01, low=0.005, high=0.02)
    for values in ([0.01, None, 0.01], [None], []):
        found = limit_tests.energy(
            values, 0.03, label="measured_counter", modelled=model, reason="permission"
        )
        assert found.verdict == "NOT_MEASURED"
        assert found.estimate is None
        assert found.note is not None
        assert "permission" in found.note
        assert "10.0 mJ" in found.note
    # a modelled number is never called measured, wherever it is put
    sly = limit_tests.energy([0.01, 0.01, 0.01], 0.03, label="modelled_tdp")
    assert sly.verdict == "NOT_MEASURED"


@pytest.mark.parametrize(
    ("limit", "expected"), [(0.03, "MET"), (0.015, "UNDECIDED"), (0.001, "NOT_MET")]
)
def test_energy_modelled_and_accepted(limit: float, expected: str) -> None:
    model = Interval(value=0.01, low=0.005, high=0.02)
    found = limit_tests.energy(
        [None], limit, label="modelled_tdp", modelled=model, accept_modelled=True
    )
    assert found.verdict == expected
    assert "modelled" in found.source
    assert found.note is not None
    assert "modelled" in found.note


def test_memory_and_scalars() -> None:
    assert limit_tests.memory([1e6, 2e6], 2e6).verdict == "MET"
    assert limit_tests.memory([1e6, 2e6], 1.5e6).verdict == "NOT_MET"
    assert limit_tests.memory([1e6, None], 2e6).verdict == "NOT_MEASURED"
    assert limit_tests.memory([], 2e6).verdict == "NOT_MEASURED"
    assert limit_tests.scalar("train_time", "s", 3.0, 4.0, "x").verdict == "MET"
    assert limit_tests.scalar("train_time", "s", 5.0, 4.0, "x").verdict == "NOT_MET"
    missing = limit_tests.scalar("train_energy", "J", None, 4.0, "x")
    assert missing.verdict == "NOT_MEASURED"
    assert missing.estimate is None


# -- quality -------------------------------------------------------------------------------


def test_identical_scores_have_a_small_bound() -> None:
    same = binary([1.0] * 430 + [0.0] * 18)
    found = non_inferiority.quality_drop(same, same, 0.01, higher_is_better=True)
    assert found.upper == pytest.approx(0.007, abs=0.0005)
    assert found.verdict == "MET"
    assert (
        non_inferiority.quality_drop(same, same, 0.005, higher_is_better=True).verdict
        == "UNDECIDED"
    )


def test_direction_of_the_metric() -> None:
    candidate, baseline = changed(400, 60, 0)
    assert (
        non_inferiority.quality_drop(candidate, baseline, 0.02, higher_is_better=True).verdict
        == "NOT_MET"
    )
    found = non_inferiority.quality_drop(candidate, baseline, 0.02, higher_is_better=False)
    assert found.verdict == "MET"
    assert found.estimate == pytest.approx(-0.15)


def test_too_few_rows_are_never_met() -> None:
    same = binary([1.0] * 29)
    assert (
        non_inferiority.quality_drop(same, same, 0.9, higher_is_better=True).verdict == "UNDECIDED"
    )
    assert non_inferiority.smallest_certifiable_drop(29) is None


def test_undecided_says_how_many_rows() -> None:
    candidate, baseline = changed(200, 6, 5)
    found = non_inferiority.quality_drop(candidate, baseline, 0.02, higher_is_better=True)
    assert found.verdict == "UNDECIDED"
    assert found.note is not None
    assert "rows would certify" in found.note
    candidate, baseline = changed(200, 6, 0)
    found = non_inferiority.quality_drop(candidate, baseline, 0.02, higher_is_better=True)
    assert found.note is not None
    assert "reaches the limit" in found.note


def test_rows_must_pair() -> None:
    with pytest.raises(ValueError, match="same rows"):
        non_inferiority.quality_drop(
            binary([1.0] * 40), binary([1.0] * 41), 0.1, higher_is_better=True
        )


def test_rows_and_drop_are_inverse() -> None:
    for drop in (0.005, 0.01, 0.05):
        rows = non_inferiority.rows_needed(drop)
        assert rows is not None
        least = non_inferiority.smallest_certifiable_drop(rows)
        assert least is not None
        assert least <= drop
    assert non_inferiority.rows_needed(0.0) is None
    assert non_inferiority.rows_needed(1.0) == 30


@pytest.mark.parametrize(("rows", "drop"), [(35, 0.15), (50, 0.1)])
def test_false_met_rate_at_the_boundary_is_exact(rows: int, drop: float) -> None:
    """Summed over every outcome, at several rates of better rows: at most 5 %."""
    rejected = [
        (b, c)
        for b, c in product(range(rows + 1), repeat=2)
        if b + c <= rows and b - c < rows * drop and paired.p_value(b, c, rows, drop) <= 0.05
    ]
    assert rejected
    logs = [math.lgamma(i + 1) for i in range(rows + 1)]
    for better in (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, (1 - drop) / 2):
        worse, same = better + drop, 1 - 2 * better - drop
        total = 0.0
        for b, c in rejected:
            a = rows - b - c
            if (c and not better) or (a and same <= 1e-12):
                continue
            log = logs[rows] - logs[a] - logs[b] - logs[c] + b * math.log(worse)
            log += c * math.log(better) if c else 0.0
            log += a * math.log(same) if a else 0.0
            total += math.exp(log)
        assert total <= 0.05


@FAST
@given(st.integers(0, 12), st.integers(0, 12), st.floats(0.0, 0.3), st.floats(0.1, 1.0))
def test_a_tighter_drop_never_turns_not_met_into_met(
    worse: int, better: int, drop: float, factor: float
) -> None:
    candidate, baseline = changed(60, worse, better)
    loose = non_inferiority.quality_drop(candidate, baseline, drop, higher_is_better=True)
    tight = non_inferiority.quality_drop(candidate, baseline, drop * factor, higher_is_better=True)
    assert not (loose.verdict == "NOT_MET" and tight.verdict == "MET")
    assert loose.lower is not None
    assert loose.upper is not None
    assert loose.estimate is not None
    assert loose.lower <= loose.estimate <= loose.upper


def test_false_met_rate_of_real_scores() -> None:
    rng = np.random.default_rng(3)
    met = 0
    for _ in range(200):
        baseline = rng.normal(0.5, 0.2, 80)
        candidate = baseline - 0.02 - (rng.exponential(0.05, 80) - 0.05)
        scores = [
            Scores(quality=float(x.mean()), rows=80, per_sample=tuple(map(float, x)))
            for x in (candidate, baseline)
        ]
        found = non_inferiority.quality_drop(scores[0], scores[1], 0.02, higher_is_better=True)
        met += found.verdict == "MET"
    assert met <= 18


def test_real_scores() -> None:
    rng = np.random.default_rng(4)
    errors = tuple(map(float, rng.exponential(1.0, 120)))
    same = Scores(quality=float(np.mean(errors)), rows=120, per_sample=errors)
    found = non_inferiority.quality_drop(same, same, 0.1, higher_is_better=False)
    assert found.verdict == "MET"
    assert found.upper is not None
    assert 0 < found.upper < 0.1
    doubled = Scores(quality=2 * same.quality, rows=120, per_sample=tuple(2 * e for e in errors))
    assert (
        non_inferiority.quality_drop(doubled, same, 0.1, higher_is_better=False).verdict
        == "NOT_MET"
    )
    near = non_inferiority.quality_drop(
        Scores(quality=same.quality, rows=120, per_sample=errors[::-1]),
        same,
        0.1,
        higher_is_better=False,
    )
    assert near.verdict == "UNDECIDED"
    assert near.note is not None
    assert "rows" in near.note


def test_replicates_and_bare_numbers() -> None:
    draws = tuple(0.9 + 0.001 * (i % 7) for i in range(200))
    base = Scores(quality=0.903, rows=100, replicates=draws)
    worse = Scores(quality=0.803, rows=100, replicates=tuple(d - 0.1 for d in draws))
    assert non_inferiority.quality_drop(base, base, 0.01, higher_is_better=True).verdict == "MET"
    assert (
        non_inferiority.quality_drop(worse, base, 0.01, higher_is_better=True).verdict == "NOT_MET"
    )
    assert non_inferiority.quality_interval(base) == (0.9, 0.906)
    bare = Scores(quality=0.9, rows=100)
    found = non_inferiority.quality_drop(bare, bare, 0.01, higher_is_better=True)
    assert found.verdict == "UNDECIDED"
    assert found.note is not None
    assert "score(output, target)" in found.note
    assert non_inferiority.quality_interval(bare) is None


def test_interval() -> None:
    low, high = non_inferiority.quality_interval(binary([1.0] * 97 + [0.0] * 3)) or (0, 0)
    assert (low, high) == (pytest.approx(0.9148, abs=1e-4), pytest.approx(0.9938, abs=1e-4))
    assert non_inferiority.quality_interval(binary([1.0] * 40)) == (
        pytest.approx(0.9119, abs=1e-4),
        1.0,
    )
    real = Scores(quality=0.5, rows=40, per_sample=tuple(0.4 + 0.005 * i for i in range(40)))
    low, high = non_inferiority.quality_interval(real) or (0, 0)
    assert low < 0.4975 < high
    one = Scores(quality=0.5, rows=1, per_sample=(0.5,))
    assert non_inferiority.quality_interval(one) == (0.5, 0.5)


# -- comparing -----------------------------------------------------------------------------


def test_faster() -> None:
    rng = np.random.default_rng(5)
    slow = [list(rng.normal(0.01, 1e-4, 100)) for _ in range(4)]
    fast = [[x * 0.5 for x in launch] for launch in slow]
    found = launch_ratio.faster(fast, slow, 95)
    assert found.ratio == pytest.approx(0.5)
    assert found.beyond_noise
    noise = launch_ratio.faster(slow, [list(rng.normal(0.01, 1e-4, 100)) for _ in range(4)], 95)
    assert noise.low < 1 < noise.high
    assert not noise.beyond_noise
    assert not launch_ratio.faster(fast[:1], slow[:1], 95).beyond_noise
    assert launch_ratio.faster([], [], 95).high == math.inf


def test_exit_code() -> None:
    met = limit_tests.scalar("a", "s", 1.0, 2.0, "")
    missed = limit_tests.scalar("a", "s", 3.0, 2.0, "")
    missing = limit_tests.scalar("a", "s", None, 2.0, "")
    assert limit_tests.exit_code([]) == 4
    assert limit_tests.exit_code([met, met]) == 0
    assert limit_tests.exit_code([met, missing]) == 4
    assert limit_tests.exit_code([missing, missed, met]) == 3
