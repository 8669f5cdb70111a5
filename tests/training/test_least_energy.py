"""The power search: few looks, near the optimum, on recorded tables and on made-up ones."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.training.power_limit import MOST_LOOKS, SLOWER, Look, least_clock, least_energy
from benchmarks.replay_training import __main__ as replay_training


@pytest.mark.parametrize("name", sorted(replay_training.load()))
def test_recorded_tables_are_searched_in_twelve_looks(name: str) -> None:
    found, looks = replay_training.ratio(replay_training.load()[name])
    assert looks <= MOST_LOOKS
    assert found <= 1.03


def made_up(knee: int, power: float) -> "dict[tuple[int, float], Look]":
    """Time falls to a knee over the batch and with the limit; power rises with it."""
    table = {}
    for batch in (8, 16, 32, 64, 128, 256, 512):
        for limit in (100.0, 150.0, 200.0, 250.0):
            time_s = (1 + knee / batch) * (1 + math.exp((120 - limit) / power))
            table[batch, limit] = Look(time_s, time_s * (40 + 0.8 * limit))
    return table


@given(knee=st.integers(4, 600), power=st.floats(10, 80), most=st.integers(1, 20))
def test_it_keeps_its_looks_and_never_ends_slower_than_allowed(
    knee: int, power: float, most: int
) -> None:
    table = made_up(knee, power)
    batches, limits = (8, 16, 32, 64, 128, 256, 512), (100.0, 150.0, 200.0, 250.0)
    found = least_energy(batches, limits, lambda b, p: table[b, p], most=most)
    assert 1 <= len(found.looks) <= most
    fastest = min(look.time_s for look in found.looks.values())
    assert found.looks[found.best].time_s <= (1 + SLOWER) * fastest
    if most >= MOST_LOOKS:
        assert found.looks[found.best].energy_j <= 1.05 * replay_training.optimum(table)


def test_a_setting_that_fails_is_no_answer() -> None:
    def look(batch: int, limit: float) -> Look:
        return Look(math.inf, math.inf) if batch > 64 else made_up(64, 30.0)[batch, limit]

    found = least_energy((8, 16, 32, 64, 128, 256), (100.0, 150.0, 200.0, 250.0), look)
    assert found.best[0] == 3


@given(knee=st.floats(0.5, 0.95), saved=st.floats(0.0, 1.0))
def test_a_clock_is_lowered_while_it_saves_and_the_time_allows(knee: float, saved: float) -> None:
    def look(clock: float) -> Look:
        time_s = 1.0 + 3 * max(0.0, knee - clock)
        return Look(time_s, time_s * (100 - 80 * saved * (1 - clock)))

    clocks = [0.9, 0.8, 0.7, 0.6, 0.5]
    found = least_clock(clocks, look, look(1.0), 1.0)
    if found is not None:
        assert look(found).time_s <= 1 + SLOWER
        assert look(found).energy_j < look(1.0).energy_j
    assert least_clock(clocks, look, look(1.0), 0.5) is None
