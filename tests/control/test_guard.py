"""The quality guard's error rate: how many plans *confirm* can bear."""

import pytest

from autotune.control import figures
from autotune.records.budget import Budget
from tests.support import made


@pytest.mark.parametrize(
    ("rows", "split"),
    [
        (600, (0.03, 0.0125, 0.0075)),
        (450, (0.05 / 3,) * 3),  # 0.75 % certifies 1.08 %, a third of 5 % certifies 0.91 %
        (398, (0.025, 0.025)),  # a third of the error rate certifies 1.02 %, half of it 0.93 %
        (320, (0.05,)),
        (100, (0.03, 0.0125, 0.0075)),  # not even one could be certified: nothing to save
    ],
)
def test_no_more_finalists_than_the_rows_can_certify(rows: int, split: tuple[float, ...]) -> None:
    run = made.run(task=made.info(confirm_rows=rows))
    assert figures.quality_alphas(run) == pytest.approx(split)
    assert sum(figures.quality_alphas(run)) == pytest.approx(figures.QUALITY_ALPHA)


def test_fewer_finalists_have_it_all() -> None:
    run = made.run(task=made.info(confirm_rows=600))
    assert figures.quality_alphas(run, 2) == pytest.approx((0.035, 0.015))
    assert figures.quality_alphas(run, 1) == pytest.approx((0.05,))


def test_a_metric_without_an_exact_test_splits_as_ever() -> None:
    run = made.run(task=made.info(confirm_rows=398, binary=False, rate=False))
    assert len(figures.quality_alphas(run)) == figures.FINALISTS
    exact = made.run(budget=Budget(max_drop=0.0))
    assert len(figures.quality_alphas(exact)) == figures.FINALISTS
