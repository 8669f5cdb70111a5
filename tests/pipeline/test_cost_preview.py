"""What a run is said to cost, from unit costs that are written down."""

import pytest

from autotune.pipeline.cost_preview import Costs, lines, preview, round_up


def costs(rungs: int) -> Costs:
    return Costs(
        spent_s=10.0, evaluation_s=0.1, training_s=5.0, recipe_s=10.0, pinned=1, trial_s=2.0,
        launch_s=1.0, epochs=0.5, rungs=rungs,
    )  # fmt: skip


def test_halving_lets_more_recipes_fit_also_within_one_epoch() -> None:
    whole, halved = preview(costs(1), 100.0), preview(costs(3), 100.0)
    assert (whole.train_trials, halved.train_trials) == (3, 6)  # 1 + 25 / 10, 1 + 22 / 4
    assert halved.recommended_s < whole.recommended_s


def test_the_whole_run_is_the_sum_of_its_parts() -> None:
    found = preview(costs(3), 100.0)
    left = 100.0 - 10.0 - 32.0 - 5.0
    assert found.whole_s == pytest.approx(10 + 32 + 5 + 0.7 * left + 9 * 1.0 + 3 * 0.1)
    assert found.deploy_trials == 1 + int((0.7 * left - 2.0) / 2.0)


def test_a_longer_time_is_recommended_as_one_would_type_it() -> None:
    found = preview(costs(3), 100.0)
    assert lines(found, 100.0)[-1].startswith("Recommended: --time 270s")
    assert (round_up(61.0), round_up(301.0)) == ("70s", "6min")
