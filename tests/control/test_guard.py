"""The quality guard's error rate: how many plans *confirm* can bear."""

import pytest

from autotune.control import figures
from autotune.records.budget import Budget
from tests.support import made


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        (450, 3),
        (398, 2),  # a third of the error rate certifies 1.02 %, half of it 0.93 %
        (320, 1),
        (100, 3),  # not even one could be certified: nothing to save
    ],
)
def test_no_more_finalists_than_the_rows_can_certify(rows: int, count: int) -> None:
    run = made.run(task=made.info(confirm_rows=rows))
    assert figures.finalists(run) == count


def test_a_metric_without_an_exact_test_splits_as_ever() -> None:
    run = made.run(task=made.info(confirm_rows=398, binary=False, rate=False))
    assert figures.finalists(run) == figures.FINALISTS
    assert figures.finalists(made.run(budget=Budget(max_drop=0.0))) == figures.FINALISTS
