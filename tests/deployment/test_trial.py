"""A candidate whose evaluation is expensive is judged on growing parts of *validation*."""

from typing import Any

import pytest

from autotune.deployment import metrics
from autotune.deployment.goal import Goal
from autotune.deployment.metrics import Tried
from autotune.deployment.trial import Attempt, part_of
from autotune.records import job as jobs
from autotune.records.budget import Budget
from autotune.records.measurement import Scores
from autotune.records.plan import Deployment
from autotune.records.report import DeployTrial, Failure
from autotune.stats import quantile
from tests.support import made

ROWS = 1600
DENSE = Deployment()


class FakeEvaluator:
    """Answers an attempt; ``wrong`` says which rows the candidate gets wrong."""

    def __init__(self, wrong: Any, seconds: float = 0.01, fail: str = "") -> None:
        self.run = made.run(
            task=made.info(validation_rows=ROWS, test_rows=ROWS), budget=Budget(max_drop=0.01)
        )
        self.tried: list[Tried] = []
        self.asked: list[tuple[str, int]] = []
        self._wrong, self._seconds, self._fail = wrong, seconds, fail

    def _answer(self, name: str, every: int, answer: Any) -> jobs.Result:
        self.asked.append((name, every))
        if name == self._fail:
            return jobs.Result(failure=Failure(kind="oom", message="too large"), wall_s=1.0)
        return jobs.Result(answer=answer, wall_s=1.0, work_s=0.75)

    def build(self, deployment: Deployment) -> jobs.Result:
        built = jobs.Built(artifact="builds/a", sha256="", files={}, size_bytes=1, stages=())
        return self._answer("build", 1, built)

    def measure(self, built: jobs.Built, deployment: Deployment, every: int) -> jobs.Result:
        return self._answer("measure", every, jobs.Measured(launch=made.launch(self._seconds)))

    def more_outputs(self, built: jobs.Built, deployment: Deployment, every: int) -> jobs.Result:
        return self._answer("more", every, jobs.Measured(launch=made.launch(self._seconds)))

    def score(self, built: jobs.Built, part: str, every: int) -> jobs.Result:
        values = tuple(0.0 if self._wrong(row) else 1.0 for row in range(0, ROWS, every))
        scores = Scores(quality=sum(values) / len(values), rows=len(values), per_sample=values)
        return self._answer("score", every, jobs.Scored(scores=scores))


def baseline(seconds: float = 0.01, work_s: float = 20.0) -> Tried:
    values = tuple(0.0 if row % 50 == 0 else 1.0 for row in range(ROWS))
    scores = Scores(quality=sum(values) / ROWS, rows=ROWS, per_sample=values)
    latency = quantile.quantiles([(seconds,) * 100], 95.0)
    trial = DeployTrial(number=0, deployment=DENSE, state="complete", latency_s=latency)
    return Tried(trial, None, made.launch(seconds, work_s), scores)


def test_rows_that_are_scored_faster_than_a_process_starts_are_taken_at_once() -> None:
    evaluator = FakeEvaluator(lambda row: row % 32 < 16)
    Attempt(evaluator, 0, DENSE, "test").run(baseline(work_s=2.5))
    assert evaluator.asked == [("build", 1), ("measure", 1), ("score", 1)]


def test_a_hopeless_one_is_stopped_on_a_sixteenth() -> None:
    evaluator = FakeEvaluator(lambda row: row % 32 < 16)
    tried = Attempt(evaluator, 0, DENSE, "test").run(baseline())
    assert evaluator.asked == [("build", 1), ("measure", 16), ("score", 16)]
    assert tried.trial.state == "pruned"
    assert tried.trial.stopped is not None
    assert "already on 100 of 1600 rows" in tried.trial.stopped
    assert Goal().objective(evaluator.run, tried, baseline()) is None
    found = metrics.constraints(evaluator.run, tried, part_of(baseline(), tried))
    assert isinstance(found["constraints"], dict)
    assert found["constraints"]["quality"] > 0


def test_one_that_is_not_clearly_worse_goes_on_to_all_rows() -> None:
    evaluator = FakeEvaluator(lambda row: row % 50 == 0)
    tried = Attempt(evaluator, 0, DENSE, "test").run(baseline())
    looks = [every for name, every in evaluator.asked if name == "score"]
    assert looks == [16, 4, 1]
    assert [name for name, _ in evaluator.asked].count("measure") == 1
    assert tried.trial.state == "complete"
    assert tried.scores is not None
    assert tried.scores.rows == ROWS
    assert tried.trial.wall_s == pytest.approx(7.0)
    assert tried.trial.overhead_s == pytest.approx(7 * 0.25)


@pytest.mark.parametrize("seconds", [1e-3])
def test_a_cheap_evaluation_is_done_at_once(seconds: float) -> None:
    evaluator = FakeEvaluator(lambda row: True, seconds)
    Attempt(evaluator, 0, DENSE, "test").run(baseline(seconds))
    assert evaluator.asked == [("build", 1), ("measure", 1), ("score", 1)]


def test_a_failure_is_data() -> None:
    evaluator = FakeEvaluator(lambda row: False, fail="measure")
    tried = Attempt(evaluator, 0, DENSE, "test").run(baseline())
    assert tried.trial.state == "failed"
    assert tried.trial.failure == Failure(kind="oom", message="too large")
    assert tried.trial.constraints == {"failed": 1.0}
