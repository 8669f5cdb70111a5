"""Two machines: only their own errors count, and the cheapest measurement that settles."""

import math

import pytest

from autotune.planning import compare_machines
from autotune.planning.compare_machines import BestPlan
from tests.support import planned


def side(name, sample_s, own=0.1, price=None, devices=8):
    target = planned.machine(name=name, price_per_h=price)
    return BestPlan(target, devices, sample_s, 10 * sample_s, own)


def test_probability_is_that_of_the_ratio():
    found = compare_machines.compare(side("a", 1.0), side("b", 1.2))
    sd = math.hypot(0.1, 0.1)
    assert found.faster == pytest.approx(0.5 * math.erfc(-math.log(1.2) / sd / math.sqrt(2)))
    assert found.ratio.value == pytest.approx(1.2)
    assert found.ratio.high / found.ratio.value == pytest.approx(math.exp(1.645 * sd), rel=1e-3)


def test_swapping_the_machines_turns_the_probability():
    a, b = side("a", 1.0), side("b", 1.1)
    assert compare_machines.compare(a, b).faster == pytest.approx(
        1 - compare_machines.compare(b, a).faster
    )
    assert compare_machines.compare(a, side("c", 1.0)).faster == pytest.approx(0.5)


def test_price_decides_what_is_cheaper():
    found = compare_machines.compare(side("a", 1.0, price=10.0), side("b", 1.2, price=2.0))
    assert found.cheaper is not None
    assert found.cheaper < 0.01 < found.faster
    cost = compare_machines.cost_per_million(side("a", 0.36, price=10.0), 0.1)
    assert cost is not None
    assert cost.value == pytest.approx(1000)
    half = compare_machines.cost_per_million(side("a", 0.36, price=10.0, devices=4), 0.1)
    assert half is not None
    assert half.value == pytest.approx(500)
    assert compare_machines.compare(side("a", 1.0), side("b", 1.2, price=2.0)).cheaper is None


def test_what_is_clear_needs_no_measurement():
    assert compare_machines.compare(side("a", 1.0), side("b", 3.0)).settling is None


def test_the_machine_that_is_known_less_is_measured():
    found = compare_machines.compare(side("a", 1.0, own=0.02), side("b", 1.1, own=0.3)).settling
    assert found is not None
    assert found.machines == ("b",)
    assert found.decides >= 0.5


def test_the_cheaper_of_two_that_settle_is_taken():
    near = compare_machines.compare(
        side("a", 1.0, own=0.2, price=100.0), side("b", 1.35, own=0.2, price=1.0)
    ).settling
    assert near is not None
    assert near.machines == ("b",)
    assert near.cost is not None
    assert near.cost < 1.0


def test_two_alike_take_the_most_telling():
    found = compare_machines.compare(side("a", 1.0, own=0.05), side("b", 1.0, own=0.05)).settling
    assert found is not None
    assert found.machines == ("a", "b")
    assert found.decides < 0.5
