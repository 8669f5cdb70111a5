"""``--joint``: recovery's own dimensions, and nothing else without it."""

import pytest

from autotune.deployment import search_space
from autotune.errors import UsageError
from autotune.records.budget import Effort
from autotune.records.plan import Deployment, Recovery, Step, Value
from autotune.records.task import Survey
from autotune.search.space import Space
from tests.support import made
from tests.support.simulated import OPTIONS

JOINT = Effort(joint=True)


def searched(effort: Effort = JOINT, **task: object) -> Space:
    survey = Survey(task=made.info(**task), traits=made.traits(), options=OPTIONS)
    return search_space.deploy_space(survey, (1, 2), (1,), effort)


def own(space: Space) -> list[str]:
    return [n.dim.name for n in space.nodes if n.dim.name.startswith("prune.recovery_")]


def deployment(values: dict[str, Value]) -> Deployment:
    whole: dict[str, Value] = {
        **{"runtime": "onnxruntime", "prune": "prune", "threads": 1, "prune.macs_kept": 0.5},
        **values,
    }
    return search_space.deployment(whole, OPTIONS, batch_size=1, recovery_epochs=4.0)


def test_a_step_that_trains_searches_its_recovery() -> None:
    names = ["lr", "epochs", "teacher", "temperature"]
    assert own(searched()) == [f"prune.recovery_{name}" for name in names]
    parents = {n.parent for n in searched().nodes if n.dim.name.startswith("prune.recovery_")}
    assert parents == {"prune"}
    assert own(searched(classes=None, has_loss=False)) == [
        "prune.recovery_lr",
        "prune.recovery_epochs",
    ]


def test_without_joint_or_rows_nothing_changes() -> None:
    assert own(searched(Effort())) == []
    assert searched(train_rows=0, calibration_rows=0).hash == searched(Effort()).hash
    assert searched().hash != searched(Effort()).hash


def test_the_usual_values_are_the_plan_without_joint() -> None:
    plain = deployment({})
    usual = {"lr": 1.0, "epochs": 1.0, "teacher": 0.7, "temperature": 2.0}
    assert deployment({f"prune.recovery_{k}": v for k, v in usual.items()}) == plain
    assert Step(name="prune").recovery == Recovery(**usual)
    slower = deployment({"prune.recovery_lr": 0.1, "prune.recovery_teacher": 0.7})
    assert slower.compress[0].params == {"macs_kept": 0.5, "recovery_lr": 0.1}
    assert slower.compress[0].recovery == Recovery(lr=0.1)


@pytest.mark.parametrize("values", [{}, {"prune.recovery_lr": 0.1, "prune.recovery_epochs": 0.25}])
def test_a_deployment_is_found_again_in_the_space(values: dict[str, object]) -> None:
    plan = deployment(values)
    found = search_space.values_of(plan, searched(), OPTIONS)
    assert found is not None
    assert deployment(dict(found)) == plan


def test_a_recovery_can_be_held_fast() -> None:
    held = searched(Effort(joint=True, fix=("recovery_lr=0.3",)))
    assert next(n for n in held.nodes if n.dim.name == "prune.recovery_lr").dim.choices == (0.3,)
    with pytest.raises(UsageError, match=r"0\.3"):
        searched(Effort(joint=True, fix=("recovery_lr=0.2",)))


def test_every_seed_recovers_as_usual() -> None:
    for values in search_space.initial_configurations(searched(), OPTIONS, 1):
        made_of = search_space.deployment(values, OPTIONS, batch_size=1, recovery_epochs=1.0)
        assert all(step.recovery == Recovery() for step in made_of.compress)
