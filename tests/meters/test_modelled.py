"""The power model: its formula, its range, and its SPECpower check."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.meters import modelled
from autotune.meters.modelled import PRIOR_CORE_IDLE_W, PRIOR_CORE_MAX_W, Use, energy
from autotune.records.hardware import Cpu, Leaf, Profile
from benchmarks import energy_model


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


def test_watts_that_a_profile_measured_on_the_whole_machine() -> None:
    def watts(value: float | None) -> Leaf:
        return Leaf(value=value, unit="W", source="measured")

    power = {"idle_power_w": watts(20.0), "loaded_power_4t_w": watts(90.0)}
    whole = msgspec.structs.replace(profile(usable=4.0), figures=power)
    assert modelled.measured_w(whole) == (20.0, 90.0)
    part = msgspec.structs.replace(profile(usable=2.0), figures=power)
    assert modelled.measured_w(part) is None  # all of its own cores are not all cores
    unknown = power | {"loaded_power_4t_w": watts(None)}
    assert modelled.measured_w(msgspec.structs.replace(whole, figures=unknown)) is None
    assert modelled.measured_w(profile(usable=4.0)) is None


def test_calibrated_by_the_machines_watts() -> None:
    interval, label = energy(profile(), 2.0, 2.0, idle_w=40.0, max_w=100.0)
    assert label == "modelled_calibrated"
    assert interval.value == pytest.approx(0.5 * (40 + 60 * 0.5**modelled.SHAPE.usual) * 2)
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


@pytest.mark.parametrize("watts", modelled.SPECPOWER.values(), ids=modelled.SPECPOWER)
def test_calibrated_range_holds_published_half_load(watts: tuple[float, float, float]) -> None:
    """SPECpower servers at 50 %: between their idle and full watts the model must hold them."""
    idle_w, half_w, max_w = watts
    whole = profile(4.0, 4)
    interval, _ = energy(whole, 2.0, 1.0, idle_w=idle_w, max_w=max_w)
    assert interval.low <= half_w <= interval.high
    assert interval.high - interval.value <= 0.2501 * interval.value
    assert interval.value - interval.low <= 0.2501 * interval.value


def test_leaving_one_server_out_in_turn() -> None:
    """The benchmark's claim, without its table."""
    found = energy_model.points()
    assert len(found) == 27
    assert energy_model.share(found) >= 0.9
    assert energy_model.share([p for p in found if p.load == 0.5]) >= 0.9
    assert max(point.width for point in found) <= 0.25 + 1e-9


def test_benchmark_says_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert energy_model.main() == 0
    assert "PASS" in capsys.readouterr().out


@given(st.floats(0, 500), st.floats(0, 500), st.floats(0, 1))
def test_the_range_holds_its_value_and_is_bounded(idle: float, more: float, used: float) -> None:
    found = modelled.calibrated(idle, idle + more, used)
    assert found.low <= found.value <= found.high
    assert found.low >= 0.75 * found.value - 1e-9
    assert found.high <= 1.25 * found.value + 1e-9


def test_rank_that_no_power_model_changes() -> None:
    """Half the time at the same load is less energy, whatever a core draws."""
    slow, quick = Use(4.0, 2.0, 100), Use(2.0, 1.0, 100)
    assert modelled.rank_robustness([slow, quick], 2.0) == "rank robust"
    assert modelled.rank_robustness([slow], 2.0) == "rank robust"


def test_rank_that_depends_on_the_power_model() -> None:
    """Long on one core or short on both: idle power decides."""
    long, short = Use(1.3, 1.3, 100), Use(2.0, 1.0, 100)
    answer = modelled.rank_robustness([long, short], 2.0)
    assert answer == "rank depends on the assumed power model"


@pytest.mark.parametrize("use", [Use(1, 0, 1), Use(1, 1, 0), Use(-1, 1, 1)])
def test_rank_refuses(use: Use) -> None:
    with pytest.raises(ValueError, match="needs window_s > 0"):
        modelled.rank_robustness([use], 1.0)
