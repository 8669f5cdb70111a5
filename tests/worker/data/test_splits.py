import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.worker.data import splits


@given(rows=st.integers(1, 300), ways=st.integers(2, 5), seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_deal_uses_each_row_once_and_evenly(rows, ways, seed):
    piles = splits.stratified(rows, ways, seed)
    assert sorted(np.concatenate(piles)) == list(range(rows))
    sizes = [len(pile) for pile in piles]
    assert max(sizes) - min(sizes) <= 1


@given(seed=st.integers(0, 1000), counts=st.lists(st.integers(0, 60), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_deal_keeps_classes_in_proportion(seed, counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    for pile in splits.stratified(len(labels), 2, seed, labels):
        for label, count in enumerate(counts):
            assert abs((labels[pile] == label).sum() - count / 2) < 1


def test_the_same_seed_gives_the_same_rows_and_another_seed_others():
    one, again, other = (splits.stratified(100, 2, seed)[0].tolist() for seed in (7, 7, 8))
    assert one == again != other


def test_hold_back_keeps_four_fifths():
    train, held = splits.hold_back(103, 0)
    assert len(held) == 21
    assert sorted([*train, *held]) == list(range(103))


def test_divide_gives_halves():
    parts = splits.divide(101, 0, own_test=False, wants_calibration=False)
    assert parts.test is not None
    assert (len(parts.validation), len(parts.test), parts.calibration) == (51, 50, None)


def test_divide_gives_all_to_validation_where_test_is_given():
    parts = splits.divide(10, 0, own_test=True, wants_calibration=False)
    assert parts.validation.tolist() == list(range(10))
    assert parts.test is None


def test_divide_gives_a_third_to_calibration_only_where_sixty_are_left():
    enough = splits.divide(180, 0, own_test=False, wants_calibration=True)
    assert enough.calibration is not None
    assert enough.test is not None
    assert [len(p) for p in (enough.validation, enough.test, enough.calibration)] == [60, 60, 60]
    few = splits.divide(179, 0, own_test=False, wants_calibration=True)
    assert few.calibration is None
    assert len(few.validation) == 90
