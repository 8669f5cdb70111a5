"""The width of ``make_model(width=1.0)``: measured, priced, chosen, and carried to the end."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from autotune.api import Task, tune
from autotune.records import job as jobs
from autotune.records.budget import Budget, Effort
from autotune.records.hardware import Profile
from autotune.records.plan import Recipe
from autotune.records.report import Report, TrainTrial
from autotune.records.task import Survey, Width
from autotune.report.run_folder import load_plan
from autotune.training import search, search_space
from autotune.training import width as training_width
from autotune.training.trial import objective
from tests.support import made
from tests.support.bridges import FunctionBridge
from tests.support.simulated import OPTIONS, Simulation, info

TIME = {1.0: 1.0, 0.75: 0.75, 0.5: 0.5, 0.25: 0.49}
LOST = {1.0: 0.0, 0.75: 0.002, 0.5: 0.004, 0.25: 0.05}
JOINT = Effort(time_s=200, trials=8, train_trials=20, epochs=4, joint=True)


class Wide(Simulation):
    """Half the width takes half the time and loses 0.004; a quarter is no faster, and worse."""

    def _train(self, job: jobs.Train) -> jobs.Result:
        result = super()._train(job)
        assert isinstance(result.answer, jobs.Trained)
        quality = 0.97 - LOST[training_width.of(job.recipe)]
        qualities = (quality,) * len(result.answer.qualities)
        done = msgspec.structs.replace(result.answer, qualities=qualities)
        return msgspec.structs.replace(result, answer=done)

    def latency_s(self, build: jobs.Build) -> float:
        return super().latency_s(build) * TIME[training_width.of(build.recipe)]


def go(root: Path, profile: Profile, effort: Effort, **task: Any) -> tuple[Report, FunctionBridge]:
    bridges: list[FunctionBridge] = []
    (root / "model.py").write_text("")

    def make(work: Path) -> FunctionBridge:
        bridges.append(FunctionBridge(Wide(work, profile, task=info(**task)).answer))
        return bridges[0]

    report, _ = tune(
        Task.from_file(root / "model.py"), Budget(), effort, out=root / "out", bridge=make
    )
    return report, bridges[0]


def test_the_width_that_saves_more_than_it_loses_is_deployed(
    tmp_path: Path, profile: Profile
) -> None:
    report, bridge = go(tmp_path, profile, JOINT, width=1.0)
    assert [(w.width, w.refused is None) for w in report.survey.widths] == [
        (1.0, True),
        (0.75, True),
        (0.5, True),
        (0.25, False),
    ]
    assert "at 0.5" in (report.survey.widths[3].refused or "")
    tried = {training_width.of(t.recipe) for t in report.train_trials}
    assert tried == {1.0, 0.75, 0.5}
    plan = load_plan(tmp_path / "out")
    assert plan.recipe is not None
    assert plan.recipe.params == {"width": 0.5}
    last = [job for job in bridge.asked if isinstance(job, jobs.Build | jobs.Train)][-1]
    assert last.task.params == {"width": 0.5}
    assert any(line.startswith("Width 0.5 was chosen") for line in report.messages)


@pytest.mark.parametrize(
    ("effort", "width"), [(msgspec.structs.replace(JOINT, joint=False), 1.0), (JOINT, None)]
)
def test_nothing_is_measured_that_was_not_asked_for_or_offered(
    tmp_path: Path, profile: Profile, effort: Effort, width: float | None
) -> None:
    report, bridge = go(tmp_path, profile, effort, width=width)
    assert report.survey.widths == ()
    assert not any(job.task.params for job in bridge.asked if isinstance(job, jobs.Train))


def test_an_own_loop_keeps_its_model(tmp_path: Path, profile: Profile) -> None:
    report, _ = go(tmp_path, profile, JOINT, width=1.0, own_train=True, tunes=("lr",))
    assert report.survey.widths == ()


def survey(**changes: Any) -> Survey:
    return Survey(task=made.info(width=1.0), traits=made.traits(), options=OPTIONS, **changes)


def test_a_recipe_carries_its_width_and_the_full_one_is_none() -> None:
    searched = search_space.train_space(survey(), JOINT)
    assert next(n for n in searched.nodes if n.dim.name == "width").dim.choices[0] == 1.0
    plain = search_space.values_of(Recipe(), searched)
    assert plain is not None
    assert plain["width"] == 1.0
    layout = ("single", 1, 1)
    assert search_space.recipe(plain, layout, searched).params == {}
    narrow = search_space.recipe({**plain, "width": 0.5}, layout, searched)
    assert narrow.params == {"width": 0.5}
    assert search_space.values_of(narrow, searched) == {**plain, "width": 0.5}
    assert [v["width"] for v, _ in search_space.initial(searched, Recipe())][:5] == [
        1.0,
        0.75,
        0.5,
        0.25,
        1.0,
    ]
    without = search_space.train_space(survey(), Effort())
    assert (
        without.hash
        == search_space.train_space(
            Survey(task=made.info(), traits=made.traits(), options=OPTIONS), Effort()
        ).hash
    )


def test_a_narrow_model_may_lose_what_it_saves_of_the_allowed_drop() -> None:
    run = made.run(task=made.info(width=1.0), effort=JOINT)
    measured = tuple(Width(width=w, runtime="eager", latency_s=s) for w, s in TIME.items())
    run.survey = msgspec.structs.replace(run.survey, widths=measured)

    def trial(quality: float, width: float) -> float:
        params = training_width.params({"width": width})
        done = TrainTrial(number=0, recipe=Recipe(params=params), state="complete", quality=quality)
        found = objective(run, done)
        assert found is not None
        return found

    assert trial(0.950, 1.0) < trial(0.9449, 0.5)
    assert trial(0.950, 1.0) > trial(0.9451, 0.5)
    run.survey = msgspec.structs.replace(run.survey, widths=())
    assert trial(0.950, 1.0) < trial(0.9499, 0.5)


def test_widths_are_compared_among_themselves() -> None:
    full, half = Recipe(schedule="cosine"), Recipe(schedule="cosine", params={"width": 0.5})
    run = made.run(task=made.info(width=1.0), effort=JOINT)
    assert search._peers(run, half) != search._peers(run, full)
    mine = made.run(task=made.info(), effort=JOINT)  # a width of the user's own space
    assert search._peers(mine, half) == search._peers(mine, full) == "cosine"
