"""The quality guard's error rate: how many plans *test* can bear."""

from typing import Any

import msgspec
import pytest

from autotune.deployment import metrics
from autotune.records.budget import Budget
from autotune.records.measurement import Scores, Verdict
from autotune.records.plan import Deployment
from autotune.records.report import DeployTrial
from autotune.stats import non_inferiority
from autotune.verification import select, verdicts
from tests.support import made


@pytest.mark.parametrize(
    ("rows", "split"),
    [
        (600, (0.03, 0.0125, 0.0075)),
        (450, (0.05 / 3,) * 3),  # 0.75 % certifies 1.08 %, a third of 5 % certifies 0.91 %
        (398, (0.025, 0.025)),  # a third of the error rate certifies 1.02 %, half of it 0.93 %
        (320, (0.05,)),
        (100, (0.03, 0.0125, 0.0075)),  # not even one could be certified: nothing to save
    ],
)
def test_no_more_finalists_than_the_rows_can_certify(rows: int, split: tuple[float, ...]) -> None:
    run = made.run(task=made.info(test_rows=rows))
    assert metrics.quality_alphas(run) == pytest.approx(split)
    assert sum(metrics.quality_alphas(run)) == pytest.approx(metrics.QUALITY_ALPHA)


def test_fewer_finalists_have_it_all() -> None:
    run = made.run(task=made.info(test_rows=600))
    assert metrics.quality_alphas(run, 2) == pytest.approx((0.035, 0.015))
    assert metrics.quality_alphas(run, 1) == pytest.approx((0.05,))


def test_a_metric_without_an_exact_test_splits_as_ever() -> None:
    run = made.run(task=made.info(test_rows=398, binary=False, rate=False))
    assert len(metrics.quality_alphas(run)) == metrics.FINALISTS
    exact = made.run(budget=Budget(max_drop=0.0))
    assert len(metrics.quality_alphas(exact)) == metrics.FINALISTS


@pytest.mark.parametrize("allowed", [0.02, 0.1])
def test_what_real_scores_can_certify_is_said_once_their_spread_is_known(
    allowed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 rows rule out changes of 0.6 % of them: of scores that spread by 10, a drop of 0.06."""
    task = made.info(test_rows=500, binary=False, rate=False, metric="mse")
    run = made.run(task=task, budget=Budget(max_drop=allowed))
    notes: list[str] = []
    monkeypatch.setattr(run.listener, "note", notes.append)
    scores = Scores(quality=-10.0, rows=100, per_sample=(-20.0, 0.0) * 50)
    for _ in range(2):
        run = metrics.say_certifiable(run, scores)
    assert run.survey.certifiable_drop == pytest.approx(10 * (1 - 0.05 ** (1 / 500)))
    text = (
        "500 test rows: the smallest drop of mse they can certify is 0.05974. One of "
        "0.02 would need 1497 rows: quality will be UNDECIDED; --max-drop 0.09 is wide enough."
    )
    assert notes == ([text] if allowed < 0.06 else [])


def test_real_scores_are_judged_by_what_test_would_certify_where_it_can() -> None:
    """Rows that differ by 0.1 either way, in the mean by nothing: 500 bound the drop at 0.009."""
    task = made.info(test_rows=500, binary=False, rate=False)
    run = made.run(task=task, budget=Budget(max_drop=0.05))
    dense = Deployment(runtime="eager", threads=1, batch_size=1)
    trial = DeployTrial(number=0, deployment=dense, state="complete")
    theirs = (-1.0, 0.0) * 50
    ours = tuple(x + (0.1 if i % 4 < 2 else -0.1) for i, x in enumerate(theirs))
    base = metrics.Tried(trial, scores=Scores(quality=-0.5, rows=100, per_sample=theirs))
    mine = metrics.Tried(trial, scores=Scores(quality=-0.5, rows=100, per_sample=ours))
    seen: Any = metrics.constraints(run, mine, base)
    assert seen["constraints"]["quality"] == pytest.approx(-1.0)  # by the drop: none
    assert base.scores is not None
    run = metrics.say_certifiable(run, base.scores)
    found: Any = metrics.constraints(run, mine, base)
    assert found["drop_upper"] == pytest.approx(seen["drop_upper"] * 0.2**0.5)
    assert found["constraints"]["quality"] == pytest.approx(found["drop_upper"] / 0.05 - 1)
    run.budget = msgspec.structs.replace(run.budget, max_drop=0.001)  # 0.0035 is the least
    few: Any = metrics.constraints(run, mine, base)
    assert few["constraints"]["quality"] == pytest.approx(-1.0)


def test_rows_of_real_scores() -> None:
    rows = non_inferiority.rows_needed(0.02, spread=10.0)
    assert rows is not None
    least = non_inferiority.smallest_certifiable_drop(rows, spread=10.0)
    fewer = non_inferiority.smallest_certifiable_drop(rows - 1, spread=10.0)
    assert least is not None
    assert fewer is not None
    assert least <= 0.02 < fewer
    assert non_inferiority.rows_needed(10.0, spread=10.0) == 30
    assert non_inferiority.rows_needed(0.0, spread=10.0) is None


def test_too_few_rows_say_nothing_against_a_plan() -> None:
    """What no plan could certify counts by the drop that was seen, else by the bound."""
    run = made.run(task=made.info(test_rows=500, binary=False, rate=False))
    drop = Verdict(
        name="quality", unit="mse", limit=0.02, estimate=0.01, lower=-0.1, upper=0.1,
        confidence=0.95, samples=500, verdict="UNDECIDED", source="paired bootstrap",
    )  # fmt: skip
    assert select._excess(run, drop) == pytest.approx(4.0)
    run.survey = msgspec.structs.replace(run.survey, certifiable_drop=0.06)
    assert verdicts.too_few(run, drop)
    assert select._excess(run, drop) == 0.0
    seen = msgspec.structs.replace(drop, estimate=0.03)
    assert select._excess(run, seen) == pytest.approx(0.5)
