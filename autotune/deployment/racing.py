"""The leading plans are measured again, in turn, so that a favourable launch does not decide.

    leading by their search launches --rounds, each in another order--> pooled launches
        -> ranked anew -> a leading plan that was not yet measured again is, too

A launch of half a second varies with the load of the machine (on a shared one by a tenth, at times
by half), and the best of thirty such is biased: the launches that selected it do not count here.
Launches of a round lie seconds apart, so that a slow phase is in all of them.  Verification still
judges; this decides only the order in which plans come to it.
"""

import math
from collections.abc import Sequence

import msgspec

from autotune.deployment import finalists, metrics
from autotune.deployment.artifact_jobs import interleaved
from autotune.deployment.evaluator import DeploymentEvaluator
from autotune.deployment.metrics import Tried
from autotune.records.measurement import Launch
from autotune.report.describe import describe

_SHARE, _LEAST_S = 0.08, 60.0
"""Of the time left after training that is kept for this; nothing in a search shorter than
``_LEAST_S``, which tries few plans: they are measured again only where time is left over.
"""
ROUNDS, _FEWEST = 5, 3
_MOST = 4
_NEAR = 1.6
"""A plan with this times the cost of the best does not lead."""
_MOST_GROUPS = 3
_START_S = 0.5  # of an interpreter


def kept_s(left_s: float, search_s: float) -> float:
    """Seconds to keep of the time left after training, for a search of ``search_s``."""
    return _SHARE * left_s if search_s >= _LEAST_S else 0.0


def launch_s(one: Tried) -> float:
    """Seconds of a short launch, without the scoring of rows."""
    launch = one.launch
    assert launch is not None
    return launch.load_s + launch.first_call_s + launch.window_s + _START_S


def run(evaluator: DeploymentEvaluator, until_s: float) -> str | None:
    """Measure the leading plans again, while their launches end before ``until_s``.

    Returns:
        The outcome in a sentence; None where there was nothing to decide or no time.
    """
    first = _leading(evaluator)[:1]
    for _ in range(_MOST_GROUPS):
        group = _group(evaluator)
        if len(group) < 2 or group[0].again:
            break
        if not _measured(evaluator, group, until_s):
            break
    return _outcome(evaluator, first)


def _leading(evaluator: DeploymentEvaluator) -> list[Tried]:
    """The few best plans within the limits that lie near the first."""
    if not evaluator.goal.noisy:
        return []
    found = [t for t in finalists.standing(evaluator) if t.trial.feasible]
    if not found:
        return []
    costs = [finalists.cost(evaluator, t) for t in found]
    return [t for t, cost in zip(found, costs, strict=True) if cost <= _NEAR * costs[0]][:_MOST]


def _group(evaluator: DeploymentEvaluator) -> list[Tried]:
    """The leading plan, and where there are several: those that would be verified after it, the
    others that lead, and those that would be verified instead of the former.
    """
    leading = _leading(evaluator)
    if len(leading) < 2:
        return leading
    line = finalists.chosen(evaluator)[1:]
    behind = finalists.chosen(evaluator, without=line)[1:]
    wanted = (*leading[:1], *line, *leading[1:], *behind)
    good = [t for t in wanted if t.trial.feasible]
    return list({t.trial.number: t for t in good}.values())


def _measured(evaluator: DeploymentEvaluator, group: Sequence[Tried], until_s: float) -> bool:
    """Launch as many plans of a group as fit, at least two; fewer rounds before fewer plans.

    Returns:
        Whether two did fit and no launch failed.
    """
    left_s = until_s - evaluator.run.bridge.now()
    rounds = ROUNDS
    while len(group) > 1 and rounds * math.fsum(map(launch_s, group)) > left_s:
        if rounds > _FEWEST:
            rounds -= 1
        else:
            group = group[:-1]
    if len(group) < 2:
        return False
    found: dict[int, list[Launch]] = {one.trial.number: [] for one in group}

    def launch(one: Tried, number: int) -> None:
        assert one.built is not None
        answer = evaluator.once_more(one.built, one.trial.deployment, number).answer
        if answer is not None:
            found[one.trial.number].append(answer.launch)

    interleaved(group, range(rounds), launch)
    for one in group:
        launches = tuple(found[one.trial.number])
        if len(launches) == rounds:
            evaluator.tried[one.trial.number] = _pooled(evaluator, one, launches)
    return all(len(launches) == rounds for launches in found.values())


def _pooled(evaluator: DeploymentEvaluator, one: Tried, launches: tuple[Launch, ...]) -> Tried:
    """A plan with the figures and constraints of these launches."""
    fields = metrics.describe(evaluator.run, launches, one.trial.deployment)
    trial = msgspec.structs.replace(one.trial, launches=len(launches), **fields)
    return evaluator.constrained(one._replace(trial=trial, again=launches))


def _outcome(evaluator: DeploymentEvaluator, first: Sequence[Tried]) -> str | None:
    again = [t for t in evaluator.tried if t.again]
    if not again or not first:
        return None
    fewest = min(len(t.again) for t in again)
    text = f"The {len(again)} leading plans were measured again, {fewest} launches each in turn"
    now = finalists.standing(evaluator)[0]
    if now.trial.number == first[0].trial.number:
        return f"{text}: the best stayed first."
    return (
        f"{text}: {describe(now.trial.deployment)} is now first; "
        f"{describe(first[0].trial.deployment)} was before."
    )
