"""CANNOT by bound alone; the other words by probability; never MET."""

import pytest

from autotune.planning import limit_words
from autotune.planning.bounds import Bound


def judged(limit, bound=None, predicted=(1.0, 0.3)):
    return limit_words.judge("latency", "s", limit, bound, predicted)


def test_a_bound_over_the_limit_is_the_only_way_to_cannot():
    found = judged(0.5, Bound(0.6, "6 x 0.1 s = 0.6 s"))
    assert (found.word, found.probability, found.bound) == ("CANNOT", None, 0.6)
    assert found.why == "at least 6 x 0.1 s = 0.6 s, over the limit of 500 ms"
    impossible = judged(1e-6, Bound(1e-7, ""))
    assert impossible.word == "UNLIKELY"
    assert impossible.probability == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("limit", "word"), [(0.5, "UNLIKELY"), (0.9, "UNCLEAR"), (1.4, "UNCLEAR"), (1.6, "LIKELY")]
)
def test_words_by_probability(limit, word):
    found = judged(limit, Bound(0.1, ""))
    assert found.word == word
    assert "predicted, not measured on the target" in found.why


def test_more_is_never_less_likely():
    chances = [judged(limit / 10).probability for limit in range(1, 40)]
    assert chances == sorted(chances)
    assert chances[0] < 0.01 < 0.99 < chances[-1]


def test_nothing_that_fits_is_unlikely_and_nothing_predicted_unclear():
    assert judged(1.0, None, None).word == "UNLIKELY"
    unknown = judged(1.0, None, (None, 0.3))
    assert (unknown.word, unknown.probability) == ("UNCLEAR", None)


def test_the_best_plan_keeps_all_limits_together():
    class Plan:
        def __init__(self, time_s, memory_bytes):
            self.time_s, self.memory_bytes, self.time_sd = time_s, memory_bytes, 0.2

    fast, small, both = Plan(1.0, 9.0), Plan(9.0, 1.0), Plan(2.0, 2.0)
    limits = [(3.0, lambda p: (p.time_s, 0.2)), (3.0, lambda p: (p.memory_bytes, 0.2))]
    assert limit_words.best([fast, small, both], limits) is both
    assert limit_words.best([fast, small], []) is fast
    assert limit_words.best([], limits) is None
