"""The arms of the search-order benchmark, each on one simulated machine."""

import pytest

from benchmarks import order


@pytest.mark.parametrize("arm", order.ARMS)
def test_every_arm_chooses_a_plan_near_the_optimum(arm: str) -> None:
    ratio, tried = order.ratio(arm, seed=1, noise=0.1, time_s=60.0)
    assert 0.9 < ratio < 3
    assert tried > 4
