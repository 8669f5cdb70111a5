"""Reuse: what counts as like, what an earlier report gives, and a share that never saw it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autotune.api import Task, tune
from autotune.deployment import search_space
from autotune.errors import UsageError
from autotune.records.budget import Budget, Effort
from autotune.records.hardware import Leaf, Profile
from autotune.records.plan import Deployment, Recipe, Step
from autotune.records.report import DeployTrial, Report
from autotune.records.task import Survey, TaskInfo
from autotune.search import space, warm_start
from autotune.search.study import MixedStudy, Study
from autotune.training import search_space as training_search_space
from tests.support import made
from tests.support.bridges import FunctionBridge
from tests.support.simulated import OPTIONS, Simulation, info

GOAL = Budget(goal="latency", max_drop=0.02)
Go = Callable[..., tuple[Report, Path, Any]]


class Heard:
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def phase(self, name: str, share_s: float) -> None:
        del name, share_s

    def note(self, text: str) -> None:
        self.notes.append(text)

    def trial(self, trial: object, best: str, left_s: float) -> None:
        del trial, best, left_s


@pytest.fixture
def go(tmp_path: Path, profile: Profile) -> Go:
    path = tmp_path / "model.py"
    path.write_text("raise SystemExit('never loaded here')\n")

    def run(name: str, task: TaskInfo | None = None, **effort: Any) -> tuple[Report, Path, Heard]:
        heard = Heard()
        report, folder = tune(
            Task.from_file(path),
            GOAL,
            Effort(time_s=300, **effort),
            profile=profile,
            out=tmp_path / "reports" / name,
            listener=heard,
            bridge=lambda work: FunctionBridge(
                Simulation(work, profile, task=task or info()).answer
            ),
        )
        return report, folder, heard

    return run


def reached(trials: tuple[DeployTrial, ...], target_s: float) -> int:
    """Trials until one was as fast as the target, within noise, and kept its quality."""
    for number, trial in enumerate(trials, 1):
        fast = trial.latency_s is not None and trial.latency_s.p50 <= 1.05 * target_s
        if fast and all(value <= 0 for value in trial.constraints.values()):
            return number
    return 10_000


def best(report: Report) -> float:
    assert report.chosen is not None
    assert report.chosen.latency_s is not None
    return report.chosen.latency_s.p50


@pytest.mark.parametrize(("like", "seed"), [("named", 1), ("auto", 2)])
def test_a_second_run_is_there_in_half_of_the_first_ones_trials(
    go: Go, like: str, seed: int
) -> None:
    first, folder, _ = go("first", trials=40, seed=0)
    given = str(folder) if like == "named" else "auto"
    second, _, heard = go("second", trials=20, seed=seed, like=given)
    needed = reached(second.deploy_trials, best(first))
    assert needed <= len(first.deploy_trials) / 2
    assert best(second) <= 1.05 * best(first)
    assert any("measured anew" in note for note in heard.notes)


def test_the_donors_plans_are_measured_anew_and_a_share_is_blind(go: Go) -> None:
    _, folder, _ = go("first", trials=40)
    second, _, _ = go("second", trials=40, seed=5, like=str(folder))
    why = [t.why for t in second.deploy_trials]
    reused = [t for t in second.deploy_trials if t.why == "an earlier report"]
    assert 1 <= len(reused) <= 4
    assert all(t.state == "complete" and t.wall_s > 0 for t in reused)
    assert why.index("an earlier report") < min(
        i for i, text in enumerate(why) if text.startswith("initial")
    )
    assert "blind sampler" in why


def test_without_like_nothing_is_looked_for(go: Go) -> None:
    go("first", trials=12)
    second, _, heard = go("second", trials=12)
    assert not any("report" in t.why for t in second.deploy_trials)
    assert not any("Starts from" in note for note in heard.notes)


def test_auto_without_a_like_report_says_so(go: Go) -> None:
    _, _, heard = go("only", trials=12, like="auto")
    assert any("no report of a like model" in note for note in heard.notes)


def trained(report: Report, quality: float) -> int:
    """Recipes until one was as good, within noise."""
    for number, trial in enumerate(report.train_trials, 1):
        if trial.quality is not None and trial.quality >= quality - 0.002:
            return number
    return 10_000


def top(report: Report) -> float:
    return max(t.quality or 0.0 for t in report.train_trials)


def test_the_train_search_starts_from_the_donors_recipes(go: Go) -> None:
    far = info(recipe={"optimizer": "sgd", "lr": 0.5, "batch_size": 64})
    first, _, _ = go("first", far, trials=3, train_trials=18, epochs=5)
    second, _, heard = go("second", far, trials=3, train_trials=18, epochs=5, seed=3, like="auto")
    assert trained(second, top(first)) <= len(first.train_trials) / 2
    reused = [t for t in second.train_trials if t.why == "an earlier report"]
    assert 1 <= len(reused) <= 3
    assert all(t.state == "complete" and t.wall_s > 0 for t in reused)
    why = [t.why for t in second.train_trials]
    assert why[:2] == ["the baseline recipe", "the default recipe"]
    assert why[2] == "an earlier report"
    assert "blind sampler" in why
    assert sum("recipes of" in note for note in heard.notes) == 1


def test_a_search_alone_gives_its_recipes(go: Go) -> None:
    _, folder, _ = go("first", train_trials=6, search_only=True)
    second, _, heard = go("second", trials=4, train_trials=5, seed=3, like=str(folder))
    assert any(t.why == "an earlier report" for t in second.train_trials)
    assert not any(t.why == "an earlier report" for t in second.deploy_trials)
    assert not any("plans of" in note for note in heard.notes)


def test_a_recipe_that_this_space_has_not_is_brought_near(profile: Profile) -> None:
    """Another batch and a learning rate out of range; the user's own values are left out."""
    survey = Survey(task=made.info(train_rows=200), traits=made.traits(), options=OPTIONS)
    searched = training_search_space.train_space(survey, Effort())
    far = Recipe(optimizer="adamw", lr=1.0, batch_size=512, params={"width": 3})
    values = training_search_space.values_near(far, searched)
    assert values is not None
    assert (values["batch_size"], values["lr_adaptive"]) == (16, 3e-2)
    assert not any(name.startswith("params.") for name in values)


def test_a_folder_without_a_report_is_refused(go: Go, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no report"):
        go("run", trials=12, like=str(tmp_path / "nowhere"))


def test_models_are_near_by_size_work_and_layers() -> None:
    one = made.traits(module_types={"Linear": 3, "ReLU": 2})
    assert warm_start.model_distance(one, one) == 0
    twice = msgspec.structs.replace(one, flops_per_sample=2e6)
    assert warm_start.model_distance(one, twice) == pytest.approx(math.log(2), rel=1e-3)
    other = msgspec.structs.replace(one, module_types={"Conv2d": 5})
    assert warm_start.model_distance(one, other) == pytest.approx(1)


def test_machines_are_near_by_instructions_cores_and_anchors() -> None:
    def machine(rate: float, **changes: Any) -> Profile:
        leaf = Leaf(value=rate, unit="FLOP/s", source="measured")
        return made.profile(measured={"gemm_fp32_1t_flop_per_s": leaf}, **changes)

    assert warm_start.machine_distance(machine(1e11), machine(1e11)) == 0
    assert warm_start.machine_distance(machine(1e11), machine(2e11)) == pytest.approx(math.log(2))
    assert warm_start.machine_distance(machine(1e11), machine(1e11, cores=4.0)) == math.inf
    assert warm_start.machine_distance(machine(1e11), machine(1e11, isa=("avx2",))) == math.inf
    assert warm_start.machine_distance(made.profile(), machine(1e11)) == 0


def searched() -> space.Space:
    survey = Survey(task=made.info(), traits=made.traits(), options=OPTIONS)
    return search_space.deploy_space(survey, (1, 2), (1,), Effort())


@pytest.mark.parametrize(
    "plan",
    [
        Deployment(),
        Deployment(runtime="onnxruntime", threads=2),
        Deployment(runtime="onnxruntime", compress=(Step(name="int8_static"),)),
        Deployment(
            runtime="compiled",
            compress=(Step(name="prune", params={"macs_kept": 0.5}),),
            recovery_epochs=3,
        ),
    ],
)
def test_a_plan_goes_into_values_and_back(plan: Deployment) -> None:
    values = search_space.values_of(plan, searched(), OPTIONS)
    assert values is not None
    again = search_space.deployment(values, OPTIONS, batch_size=1, recovery_epochs=3)
    assert again == plan


@pytest.mark.parametrize(
    "plan",
    [
        Deployment(runtime="openvino"),
        Deployment(threads=8),
        Deployment(compress=(Step(name="unknown"),)),
        Deployment(runtime="eager", compress=(Step(name="int8_static"),)),
    ],
)
def test_a_plan_that_this_space_does_not_have_is_left_out(plan: Deployment) -> None:
    assert search_space.values_of(plan, searched(), OPTIONS) is None


def test_the_blind_study_takes_every_third_after_the_first_ones() -> None:
    whole = searched()
    study = Study(whole, seed=0, constraints=())
    values = study.space.sample(lambda dim: dim.choices[0] if dim.choices else dim.low)
    mixed = MixedStudy(study, [(values, "first"), (values, "second")], blind=True)
    why = []
    for _ in range(8):
        proposal = mixed.ask()
        why.append(proposal.why)
        mixed.tell(proposal.number, 1.0, {})
    assert [text == "blind sampler" for text in why] == [False] * 4 + [True, False, False, True]
