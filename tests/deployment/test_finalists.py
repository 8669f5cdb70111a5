"""Which plans are verified: an uncertain one in front where a good and safe one comes behind it."""

import math

import msgspec
import pytest

from autotune.deployment import finalists
from autotune.deployment.evaluator import DeploymentEvaluator
from autotune.deployment.metrics import Tried
from autotune.records.budget import Budget
from autotune.records.measurement import Scores
from autotune.records.plan import Deployment, Recipe, Step
from autotune.records.report import DeployTrial
from autotune.stats import quantile
from tests.support import made
from tests.support.simulated import OPTIONS

ROWS = 1000
PRUNED = Step(name="prune", params={"macs_kept": 0.4})
LESS = Step(name="prune", params={"macs_kept": 0.7})
STATIC, DYNAMIC = Step(name="int8_static"), Step(name="int8_dynamic")


@pytest.fixture
def lab() -> DeploymentEvaluator:
    run = made.run(
        task=made.info(validation_rows=ROWS, test_rows=2600),
        budget=Budget(goal="latency", max_drop=0.01),
    )
    run.survey = msgspec.structs.replace(run.survey, options=OPTIONS)
    found = DeploymentEvaluator(run, "weights", Recipe(), 1.0)
    scores = Scores(quality=0.7, rows=ROWS)
    found.baselines[1, 1] = tried(found, 8.0, scores=scores, runtime="eager")
    found.tried.append(found.baselines[1, 1])
    return found


def tried(
    lab: DeploymentEvaluator,
    seconds: float,
    *steps: Step,
    drop: float = 0.0,
    wide: float = 0.001,
    scores: Scores | None = None,
    runtime: str = "onnxruntime",
) -> Tried:
    """A plan whose drop on *validation* was bounded at ``drop + wide``, by as many rows as *test*
    has.
    """
    launch = made.launch(seconds)
    trial = DeployTrial(
        number=len(lab.tried),
        deployment=Deployment(runtime=runtime, compress=steps),
        state="complete",
        latency_s=quantile.quantiles([launch.latency_s], 95.0),
        drop=drop,
        drop_upper=drop + wide,
        constraints={"quality": (drop + wide) / 0.01 - 1},
    )
    return Tried(trial, None, launch, scores)


def lined(lab: DeploymentEvaluator, *plans: Tried) -> list[tuple[str, ...]]:
    for number, plan in enumerate(plans, start=1):
        lab.tried.append(plan._replace(trial=msgspec.structs.replace(plan.trial, number=number)))
    return [tuple(s.name for s in t.trial.deployment.compress) for t in finalists.chosen(lab)]


def test_an_uncertain_plan_goes_first_and_a_safe_one_behind_it(lab: DeploymentEvaluator) -> None:
    plans = (
        tried(lab, 1.2, PRUNED, DYNAMIC, drop=-0.012, wide=0.0144),
        tried(lab, 1.3, PRUNED, STATIC, drop=-0.010, wide=0.0144),
        tried(lab, 1.4, PRUNED, drop=-0.010, wide=0.0144),
        tried(lab, 2.1, DYNAMIC, drop=-0.001, wide=0.003),
        tried(lab, 3.6),
    )
    assert lined(lab, *plans) == [("prune", "int8_dynamic"), ("int8_dynamic",), ()]


def test_of_plans_that_are_all_sure_the_fastest_goes_first(lab: DeploymentEvaluator) -> None:
    plans = (tried(lab, 1.0, STATIC), tried(lab, 2.0, DYNAMIC), tried(lab, 3.0, runtime="openvino"))
    assert lined(lab, *plans)[0] == ("int8_static",)


def test_what_all_trials_say_of_a_plan_goes_before_its_one_launch(lab: DeploymentEvaluator) -> None:
    """One launch has the static one in front; its other trials say that it is slower."""
    fast = tried(lab, 1.0, STATIC)._replace(smoothed=math.log(1.5 / 8.0))
    assert lined(lab, fast, tried(lab, 1.2, DYNAMIC))[:2] == [("int8_dynamic",), ("int8_static",)]


def test_plans_of_other_threads_are_compared_by_their_time(lab: DeploymentEvaluator) -> None:
    """On two threads the baseline is faster too, so that a ratio to it would hide the gain."""
    scores = Scores(quality=0.7, rows=ROWS)
    dense = tried(lab, 4.0, scores=scores, runtime="eager")
    two = msgspec.structs.replace(dense.trial.deployment, threads=2)
    lab.baselines[2, 1] = dense._replace(trial=msgspec.structs.replace(dense.trial, deployment=two))
    fast = tried(lab, 1.0, STATIC)
    static = msgspec.structs.replace(fast.trial.deployment, threads=2)
    fast = fast._replace(trial=msgspec.structs.replace(fast.trial, deployment=static))
    assert lined(lab, tried(lab, 1.2, DYNAMIC), fast)[0] == ("int8_static",)
    other = tried(lab, 1.2, DYNAMIC)
    assert finalists.cost(lab, fast) < finalists.cost(lab, other)
    ours, theirs = (lab.goal.objective(lab.run, t, lab.reference) for t in (fast, other))
    assert ours is not None
    assert theirs is not None
    assert ours < theirs


def test_launches_in_turn_go_before_what_all_trials_say(lab: DeploymentEvaluator) -> None:
    raced = tried(lab, 1.0, STATIC)._replace(
        smoothed=math.log(1.5 / 8.0), again=(made.launch(1.0),) * 5
    )
    assert lined(lab, raced, tried(lab, 1.2, DYNAMIC))[:2] == [("int8_static",), ("int8_dynamic",)]


def test_a_plan_that_is_hardly_faster_and_unsure_does_not_go_first(
    lab: DeploymentEvaluator,
) -> None:
    plans = (
        tried(lab, 2.0, LESS, drop=0.004, wide=0.005),
        tried(lab, 2.05, DYNAMIC, wide=0.001),
    )
    assert lined(lab, *plans)[0] == ("prune",)  # it costs little to ask, with another behind it
    assert lined(lab)[1] == ("int8_dynamic",)


def test_the_same_steps_are_not_asked_twice_while_there_is_another(
    lab: DeploymentEvaluator,
) -> None:
    plans = (
        tried(lab, 1.0, PRUNED, drop=0.0, wide=0.009),
        tried(lab, 1.01, PRUNED, drop=0.0, wide=0.009, runtime="openvino"),
        tried(lab, 2.0, DYNAMIC, drop=0.0, wide=0.009),
        tried(lab, 4.0),
    )
    assert lined(lab, *plans) == [("prune",), ("int8_dynamic",), ()]


def test_the_probability_follows_the_rows_and_the_error_rate(lab: DeploymentEvaluator) -> None:
    sure, unsure = tried(lab, 1.0, DYNAMIC), tried(lab, 1.0, PRUNED, drop=0.0, wide=0.0099)
    assert finalists.probability(lab, sure, 0.03) > 0.99
    assert 0.3 < finalists.probability(lab, unsure, 0.03) < 0.7
    assert finalists.probability(lab, unsure, 0.0075) < finalists.probability(lab, unsure, 0.03)


def test_where_quality_cannot_be_weighed_the_last_place_is_for_what_compresses_nothing(
    lab: DeploymentEvaluator,
) -> None:
    few = made.info(validation_rows=ROWS, test_rows=100)
    lab.run.survey = msgspec.structs.replace(lab.run.survey, task=few)
    plans = (
        tried(lab, 1.0, PRUNED),
        tried(lab, 1.1, STATIC),
        tried(lab, 1.2, DYNAMIC),
        tried(lab, 3.0),
    )
    assert lined(lab, *plans) == [("prune",), ("int8_static",), ()]
