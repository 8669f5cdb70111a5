"""The search: seeded, constrained, never stuck on a failure."""

import optuna
import pytest

from autotune.records.task import Dim, Node
from autotune.search.space import Space, choice
from autotune.search.study import Study

SPACE = Space(
    name="toy",
    nodes=(
        Node(dim=choice("kind", ("a", "b"))),
        Node(dim=Dim(name="x", kind="float", low=0.0, high=1.0), parent="kind", values=("a",)),
        Node(dim=Dim(name="n", kind="int", low=1, high=8)),
    ),
)


def _values(search: Study, count: int) -> list[dict[str, object]]:
    out = []
    for _ in range(count):
        proposal = search.ask()
        out.append(dict(proposal.values))
        x = float(proposal.values.get("x", 0.5))
        search.tell(proposal.number, (x - 0.3) ** 2, {"limit": x - 0.8})
    return out


def test_the_same_seed_gives_the_same_proposals() -> None:
    runs = [_values(Study(SPACE, seed=5, constraints=("limit",)), 25) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0] != _values(Study(SPACE, seed=6, constraints=("limit",)), 25)


def test_conditional_values_are_there_only_with_their_parent() -> None:
    for values in _values(Study(SPACE, seed=0, constraints=("limit",)), 30):
        assert ("x" in values) == (values["kind"] == "a")


def test_it_learns_and_keeps_the_constraint() -> None:
    late = _values(Study(SPACE, seed=1, constraints=("limit",)), 80)[50:]
    near = [v for v in late if v["kind"] == "b" or abs(float(str(v["x"])) - 0.3) < 0.25]
    assert len(near) > 0.6 * len(late)


def test_a_failed_configuration_counts_as_bad_not_as_unknown() -> None:
    search = Study(SPACE, seed=0, constraints=("limit", "other"))
    proposal = search.ask()
    search.tell(proposal.number, None, {"failed": 1.0})
    trial = search._study.trials[0]
    assert trial.state == optuna.trial.TrialState.COMPLETE
    assert trial.value is not None
    assert trial.value > 1e6


def test_what_is_enqueued_comes_first_and_says_why() -> None:
    search = Study(SPACE, seed=0, constraints=("limit",))
    search.enqueue({"kind": "a", "x": 0.25, "n": 3}, "seed")
    proposal = search.ask()
    assert (proposal.values, proposal.why) == ({"kind": "a", "x": 0.25, "n": 3}, "seed")
    assert search.ask().why == "sampler"


def test_the_result_of_a_paused_trial_is_added_as_one_more() -> None:
    search = Study(SPACE, seed=0, constraints=("limit",))
    search.enqueue({"kind": "b", "n": 2}, "waits its turn")
    values = {"kind": "a", "x": 0.25, "n": 3}
    number = search.add(values, "seed")
    search.report(number, 1, 0.5)
    search.tell(number, 0.4, {"limit": 0.0})
    stored = search._study.trials[number]
    assert (stored.value, stored.params, stored.intermediate_values) == (0.4, values, {1: 0.5})
    assert search.ask().why == "waits its turn"


@pytest.mark.parametrize("pruned", [True, False])
def test_a_trial_can_be_abandoned(pruned: bool) -> None:
    search = Study(SPACE, seed=0, constraints=("limit",))
    search.abandon(search.ask().number)
    proposal = search.ask()
    if pruned:
        search.report(proposal.number, 1, 1.0)
    search.tell(proposal.number, 1.0, {}, pruned=pruned)
    assert len(search._study.trials) == 2


def test_a_blind_study_sees_nothing_of_the_first() -> None:
    first = Study(SPACE, seed=3, constraints=("limit",))
    _values(first, 20)
    alone = Study(SPACE, seed=4, constraints=("limit",))
    blind = first.blind()
    assert [blind.ask().values for _ in range(3)] == [alone.ask().values for _ in range(3)]
