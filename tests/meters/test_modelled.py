"""The power model: its formula, its range, and its SPECpower check."""

import pytest

from autotune.meters.modelled import PRIOR_CORE_IDLE_W, PRIOR_CORE_MAX_W, energy
from autotune.records.hardware import Cpu, Profile


def profile(usable: float = 2.0, logical: int = 4) -> Profile:
    cpu = Cpu(
        vendor=None,
        model=None,
        architecture="x86_64",
        logical_cores=logical,
        physical_cores=None,
        usable_cores=usable,
    )
    return Profile(
        name="p",
        created_utc="2026-01-01",
        fingerprint="f",
        cpu=cpu,
        memory_bytes=1,
        usable_memory_bytes=1,
    )


def test_prior_of_a_busy_core_and_an_idle_one() -> None:
    interval, label = energy(profile(), cpu_s=1.0, window_s=1.0)
    assert label == "modelled_tdp"
    assert interval.value == pytest.approx(PRIOR_CORE_MAX_W + PRIOR_CORE_IDLE_W)
    assert interval.low == pytest.approx(interval.value / 2)
    assert interval.high == pytest.approx(interval.value * 2)


def test_calibrated_by_the_machines_watts() -> None:
    interval, label = energy(profile(), 2.0, 2.0, idle_w=40.0, max_w=100.0)
    assert label == "modelled_calibrated"
    assert interval.value == pytest.approx(0.5 * (40 + 60 * 0.5) * 2)
    assert interval.low == pytest.approx(0.6 * interval.value)
    assert interval.high == pytest.approx(1.4 * interval.value)


def test_one_wattage_alone_does_not_calibrate() -> None:
    assert energy(profile(), 1.0, 1.0, idle_w=40.0)[1] == "modelled_tdp"


def test_more_cpu_time_than_cores_is_full_load() -> None:
    full = energy(profile(), 2.0, 1.0)[0].value
    assert energy(profile(), 5.0, 1.0)[0].value == full


@pytest.mark.parametrize(
    ("cpu_s", "window_s", "idle_w", "max_w"),
    [(-1.0, 1.0, None, None), (1.0, -1.0, None, None), (1.0, 1.0, 9.0, 3.0), (1, 1, -1.0, 3.0)],
)
def test_refuses(cpu_s: float, window_s: float, idle_w: float | None, max_w: float | None) -> None:
    with pytest.raises(ValueError, match=r"must not be negative|0 <= idle_w"):
        energy(profile(), cpu_s, window_s, idle_w=idle_w, max_w=max_w)


def test_an_empty_window_is_no_energy_of_the_model_only() -> None:
    assert energy(profile(), 0.0, 0.0)[0].value == 0.0


@pytest.mark.parametrize(
    ("idle_w", "half_w", "max_w"),
    [
        (166, 224, 265),
        (81.4, 167, 244),
        (58.4, 140, 222),
        (53.1, 117, 245),
        (71.5, 174, 316),
        (86.4, 315, 562),
        (52.3, 224, 457),
        (55, 232, 469),
        (106, 437, 915),
    ],
)
def test_calibrated_range_holds_published_half_load(
    idle_w: float, half_w: float, max_w: float
) -> None:
    """SPECpower servers at 50 %: between their idle and full watts the model must hold them."""
    interval, _ = energy(profile(4.0), 2.0, 1.0, idle_w=idle_w, max_w=max_w)
    assert interval.low <= half_w <= interval.high
