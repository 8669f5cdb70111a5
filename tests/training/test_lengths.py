"""How long the final training is, and how far a trial is trained."""

from typing import Any

import pytest

from autotune.context import RunContext
from autotune.pipeline import cost_preview
from autotune.records.budget import Budget, Effort
from autotune.records.task import Layout
from autotune.training import lengths
from tests.support import made


def run(
    effort: dict[str, Any], task: dict[str, Any], budget: dict[str, Any], rate: float = 300.0
) -> RunContext:
    """900 rows at 300 rows per second: an epoch takes 3 s."""
    layout = Layout(
        parallel="single", ranks=1, threads=1, batch_size=32, precision="fp32", samples_per_s=rate
    )
    return made.run(
        task=made.info(**task), layouts=(layout,), budget=Budget(**budget), effort=Effort(**effort)
    )


@pytest.mark.parametrize(
    ("effort", "task", "budget", "epochs"),
    [
        ({}, {}, {}, 14),  # nine tenths of 48 s
        ({}, {}, {"train_time_s": 100.0}, 30),
        ({}, {"epochs": 7}, {}, 7),
        ({}, {"steps": 100}, {}, 4),  # 3,200 rows
        ({}, {"steps": 100, "recipe": {"batch_size": 64}}, {}, 8),
        ({"steps": 10}, {"epochs": 7}, {}, 1),
        ({"epochs": 3}, {"steps": 100}, {"train_time_s": 100.0}, 3),
    ],
)
def test_the_horizon(
    effort: dict[str, Any], task: dict[str, Any], budget: dict[str, Any], epochs: int
) -> None:
    assert lengths.horizon(run(effort, task, budget), 48.0) == epochs


def test_a_trial_is_trained_as_far_as_the_search_holds() -> None:
    one = run({}, {}, {})
    assert lengths.trial_epochs(one, 14, 180.0) == 14
    assert lengths.trial_epochs(one, 1000, 180.0) == 16
    assert lengths.trial_epochs(one, 1000, 1.0) == 1


@pytest.mark.parametrize(
    ("share_s", "task", "budget", "epochs"),
    [
        (48.0, {}, {}, 12),  # 4.8 would be too few: more than their share
        (135.0, {}, {}, 13),  # many are whole
        (10.0, {}, {}, 3.5),
        (2.0, {}, {}, 0.7),
        (2.0, {}, {"train_time_s": 6.0}, 0.6),  # a limit is not stretched
        (2.0, {"own_loader": True}, {}, 1),
        (2.0, {"own_train": True}, {}, 1),
        (2.0, {}, {"target_quality": 0.9}, 1),
        (2.0, {"epochs": 7}, {}, 7),
    ],
)
def test_dear_epochs_are_counted_in_parts(
    share_s: float, task: dict[str, Any], budget: dict[str, Any], epochs: float
) -> None:
    found = lengths.horizon(
        run({}, task, budget, rate=100.0), share_s, 3.5 * share_s
    )  # 9 s an epoch
    assert found == epochs
    assert isinstance(found, int) == (found == int(found))


def test_a_trial_that_is_nearly_as_long_is_the_final_training() -> None:
    cheap = run({}, {}, {})  # 3 s an epoch
    assert lengths.planned(cheap, 48.0, 96.0, 180.0) == (14, 14)
    assert lengths.planned(cheap, 48.0, 96.0, 120.0) == (10, 10)
    assert lengths.planned(cheap, 48.0, 96.0, 100.0) == (14, 8)
    assert lengths.planned(run({"epochs": 14}, {}, {}), 48.0, 96.0, 120.0) == (14, 10)


def test_a_trial_is_trained_for_a_part_of_a_dear_epoch() -> None:
    one = run({}, {}, {}, rate=100.0)
    assert lengths.trial_epochs(one, 4.8, 18.0) == 0.533
    assert lengths.trial_epochs(one, 0.6, 180.0) == 0.6
    assert lengths.trial_epochs(run({}, {"own_loader": True}, {}, rate=100.0), 5, 18.0) == 1


def test_a_final_training_set_apart_takes_nothing_from_the_search() -> None:
    costs: dict[str, Any] = {
        "spent_s": 10.0,
        "evaluation_s": 1.0,
        "training_s": 1000.0,
        "recipe_s": 40.0,
        "epochs": 100,
        "pinned": 1,
        "trial_s": 3.0,
        "launch_s": 2.0,
    }
    inside = cost_preview.preview(cost_preview.Costs(**costs), 600.0)
    apart = cost_preview.preview(cost_preview.Costs(**costs, apart=True), 600.0)
    assert inside.deploy_trials == 1
    assert apart.deploy_trials > 90
    assert apart.train_trials == inside.train_trials > 3
