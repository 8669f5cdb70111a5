"""Successive halving with pauses: who goes on, who is taken up again."""

from hypothesis import given
from hypothesis import strategies as st

from autotune.search.halving import Halving
from benchmarks import replay_curves

RUNGS = 3


def test_a_lone_trial_waits_at_the_first_rung_alone() -> None:
    halving = Halving(RUNGS)
    assert not halving.report(0, 0, 0.5, "cosine")
    assert halving.promotable() is None
    assert halving.report(1, 0, 0.4, "cosine")
    assert halving.report(1, 1, 0.3, "cosine")
    assert not halving.report(1, 2, 0.2, "cosine")


def test_a_paused_trial_is_promoted_when_it_is_among_the_best_third() -> None:
    halving = Halving(RUNGS)
    for number, value in enumerate((0.5, 0.4, 0.45, 0.6, 0.7)):
        halving.report(number, 0, value, "cosine")
    assert halving.promotable() is None  # the best of five went on at once
    halving.report(5, 0, 0.8, "cosine")
    assert halving.promotable() == 2
    halving.resume(2, 0)
    assert halving.promotable() is None
    assert halving.paused() == [0, 3, 4, 5]  # 1 and 2 are on their way


def test_schedules_are_not_compared() -> None:
    halving = Halving(RUNGS)
    halving.report(0, 0, 0.1, "constant")
    halving.report(1, 0, 0.9, "one_cycle")
    assert halving.promotable() is None
    halving.report(2, 0, 0.95, "one_cycle")
    assert halving.promotable() == 1


def test_what_failed_is_never_promoted() -> None:
    halving = Halving(RUNGS)
    for number, value in enumerate((0.5, 0.6)):
        halving.report(number, 0, value, "cosine")
    assert halving.promotable() == 0
    halving.forget(0)
    assert halving.promotable() is None
    assert halving.paused() == [1]


def test_one_rung_halves_nothing() -> None:
    assert not Halving(1).report(0, 0, 0.5, "cosine")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_at_most_the_best_third_and_early_bests_go_on(values: list[float]) -> None:
    halving = Halving(RUNGS)
    for number, value in enumerate(values):
        halving.report(number, 0, value, "cosine")
    while (number := halving.promotable()) is not None:
        halving.resume(number, 0)
    best = sorted(range(len(values)), key=lambda n: (values[n], n))
    waiting = set(halving.paused())
    if len(values) > 1:  # whoever is in the best third now has gone on
        assert waiting.isdisjoint(best[: max(1, len(values) // 3)])


def test_a_forecast_of_curves_would_save_little() -> None:
    """Decision "No learning curve is extrapolated", on a few of its searches."""
    found = [replay_curves.ratio("power", 0.01, allowed, searches=20) for allowed in (1.5, None)]
    assert 0.9 < found[0] < 1.1
    assert 0.8 < found[1] < 1.0
