"""The surrogate: it predicts combinations from their parts, keeps limits, and is repeatable."""

import math
from typing import Any

from autotune.records.task import Dim, Node
from autotune.search import surrogate
from autotune.search.space import Space, Values, choice, complete
from autotune.search.surrogate import Observation

RUNTIMES = ("a", "b", "c")
SPACE = Space(
    name="deploy",
    nodes=(
        Node(dim=choice("runtime", RUNTIMES)),
        Node(dim=choice("a.spin", (True, False)), parent="runtime", values=("a",)),
        Node(dim=choice("prune", ("none", "prune")), parent="runtime", values=RUNTIMES),
        Node(
            dim=Dim(name="prune.kept", kind="float", low=0.1, high=0.9, step=0.1),
            parent="prune",
            values=("prune",),
        ),
        Node(dim=choice("b+c.quantize", ("none", "int8")), parent="runtime", values=("b", "c")),
        Node(dim=choice("int8.method", ("one", "two")), parent="b+c.quantize", values=("int8",)),
    ),
)
SPEED = {"a": 1.0, "b": 0.7, "c": 0.5}


def result(values: Values, floor: float = 0.35) -> Observation:
    """Speed is a product of the parts; quality breaks below the level ``floor``."""
    speed, drop = SPEED[str(values["runtime"])], -1.0
    if values["prune"] == "prune":
        kept = float(values["prune.kept"])
        speed *= 0.1 + 0.9 * kept
        drop += 0.2 + 8 * max(0.0, floor - kept)
    if values.get("b+c.quantize") == "int8":
        speed *= 0.5
        drop += 0.5 if values["int8.method"] == "one" else 0.7
    return Observation(values, math.log(speed), {"quality": drop})


def seeds() -> list[Observation]:
    """Each part alone."""
    alone: list[dict[str, Any]] = [
        *({"runtime": r} for r in RUNTIMES),
        {"runtime": "b", "b+c.quantize": "int8"},
        {"runtime": "b", "prune": "prune", "prune.kept": 0.5},
    ]
    return [result(complete(SPACE, values)) for values in alone]


def free(values: Values) -> float:
    del values
    return 1.0


def test_a_combination_of_good_parts_comes_first() -> None:
    found = surrogate.propose(SPACE, seeds(), free, seed=0)
    assert found is not None
    assert found["runtime"] == "c"
    assert found["b+c.quantize"] == "int8"
    assert found["prune"] == "prune"


def test_it_finds_the_fastest_plan_that_keeps_its_quality_in_few_trials() -> None:
    seen = seeds()
    while len(seen) < 22:
        found = surrogate.propose(SPACE, seen, free, seed=len(seen))
        if found is None:
            break
        seen.append(result(found))
    best = min((s for s in seen if s.feasible), key=lambda s: s.objective or 0.0)
    assert best.values["runtime"] == "c"
    assert best.values["b+c.quantize"] == "int8"
    assert best.values["prune.kept"] == 0.4


def test_nothing_that_was_tried_is_proposed_again_and_the_same_seed_proposes_the_same() -> None:
    seen = seeds()
    for step in range(6):
        first, again = (surrogate.propose(SPACE, seen, free, seed=step) for _ in range(2))
        assert first is not None
        assert first == again
        assert first not in [s.values for s in seen]
        seen.append(result(first))


def test_what_costs_much_must_gain_much() -> None:
    def cost_s(values: Values) -> float:
        return 1e6 if values["prune"] == "prune" else 1.0

    found = surrogate.propose(SPACE, seeds(), cost_s, seed=0)
    assert found is not None
    assert found["prune"] == "none"


def test_what_fails_is_avoided() -> None:
    values = complete(SPACE, {"runtime": "c", "b+c.quantize": "int8"})
    other = complete(SPACE, {"runtime": "c", "b+c.quantize": "int8", "int8.method": "two"})
    seen = [*seeds(), *(Observation(v, None, {"failed": 1.0}) for v in (values, other))]
    found = surrogate.propose(SPACE, seen, free, seed=0)
    assert found is not None
    assert (found["runtime"], found.get("b+c.quantize")) != ("c", "int8")


def test_while_nothing_keeps_the_limits_what_may_keep_them_comes_first() -> None:
    seen = [
        Observation(s.values, s.objective, {"latency": math.exp(s.objective or 0.0) / 0.3 - 1})
        for s in seeds()
    ]
    assert not any(s.feasible for s in seen)
    found = surrogate.propose(SPACE, seen, free, seed=0)
    assert found is not None
    assert math.exp(result(found).objective or 0.0) < 0.5


def test_without_a_measurement_nothing_is_proposed() -> None:
    failed = Observation(complete(SPACE, {"runtime": "a"}), None, {"failed": 1.0})
    assert surrogate.propose(SPACE, [failed], free, seed=0) is None


def test_once_everything_was_tried_nothing_is_proposed() -> None:
    small = Space(name="deploy", nodes=(Node(dim=choice("runtime", RUNTIMES)),))
    seen = [Observation({"runtime": r}, math.log(SPEED[r]), {}) for r in RUNTIMES]
    assert surrogate.propose(small, seen, free, seed=0) is None


def test_continuous_dimensions_have_nine_levels_and_whole_numbers_their_own() -> None:
    assert len(surrogate.levels(Dim(name="x", kind="float", low=0.0, high=1.0))) == 9
    assert surrogate.levels(Dim(name="n", kind="int", low=1, high=4)) == (1, 2, 3, 4)
    assert surrogate.levels(Dim(name="k", kind="float", low=0.1, high=0.4, step=0.1)) == (
        0.1,
        0.2,
        0.3,
        0.4,
    )


# -- smoothed objectives --------------------------------------------------------------------


def grid(noise: float) -> list[Observation]:
    """Two runtimes at five levels, each with and without int8; in the first launch of one of them
    the logarithm of its time was off by ``noise``.
    """
    found = [
        result(complete(SPACE, {"runtime": r, "prune": "prune", "prune.kept": k, **q}))
        for r in ("b", "c")
        for k in (0.4, 0.5, 0.6, 0.7, 0.8)
        for q in ({}, {"b+c.quantize": "int8"})
    ]
    return [found[0]._replace(objective=(found[0].objective or 0.0) + noise), *found[1:]]


def test_half_of_a_fast_launch_counts_as_noise() -> None:
    truth = grid(0.0)[0].objective
    assert truth is not None
    steady = surrogate.smoothed(SPACE, grid(-0.4))[0]
    assert steady is not None
    assert abs(steady - truth) < 0.7 * 0.4


def test_plain_launches_stay_nearly_as_they_were() -> None:
    seen = grid(0.0)
    for one, steady in zip(seen, surrogate.smoothed(SPACE, seen), strict=True):
        assert one.objective is not None
        assert steady is not None
        assert abs(steady - one.objective) < 0.03


def test_what_failed_has_no_objective_then_either() -> None:
    failed = Observation(complete(SPACE, {"runtime": "a"}), None, {"failed": 1.0})
    assert surrogate.smoothed(SPACE, [failed]) == [None]
    assert surrogate.smoothed(SPACE, [*seeds(), failed])[-1] is None


# -- levels that begin where their step does nothing ---------------------------------------

LEVELS = Space(
    name="deploy",
    nodes=(
        Node(dim=choice("runtime", ("a", "b"))),
        Node(dim=choice("prune", ("none", "prune"))),
        Node(
            dim=Dim(name="prune.kept", kind="float", low=0.1, high=0.9, step=0.1, neutral=1.0),
            parent="prune",
            values=("prune",),
        ),
    ),
)


def pruned(kept: float | None, objective: float, quality: float, runtime: str = "a") -> Observation:
    values: dict[str, Any] = {"runtime": runtime, "prune": "none" if kept is None else "prune"}
    if kept is not None:
        values["prune.kept"] = kept
    return Observation(values, objective, {"quality": quality})


def level_of(found: Values) -> float:
    return float(found["prune.kept"])


def test_a_level_that_gained_and_cost_no_quality_is_followed_by_a_lower_one() -> None:
    seen = [pruned(None, 0.0, -0.9), pruned(0.5, -0.5, -0.85)]
    found = surrogate.propose(LEVELS, seen, free, seed=0)
    assert found is not None
    assert level_of(found) <= 0.2


def test_a_level_that_broke_quality_is_followed_by_one_nearer_to_the_whole_model() -> None:
    seen = [pruned(None, 0.0, -0.9), pruned(0.5, -0.5, 0.9)]
    found = surrogate.propose(LEVELS, seen, free, seed=0)
    assert found is not None
    assert level_of(found) > 0.5


def test_noise_is_distinguished_from_values_that_no_model_explains() -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    tried = np.repeat(np.eye(3), 4, axis=0)
    exact = [(i, float(i // 4)) for i in range(12)]
    noisy = [(i, value + float(rng.normal(0, 0.4))) for i, value in exact]
    assert surrogate._noise(tried, exact) == min(surrogate._NOISES)
    assert surrogate._noise(tried, noisy) == max(surrogate._NOISES)
    assert surrogate._noise(tried[:4], noisy[:4]) == min(surrogate._NOISES)


def test_a_guess_keeps_what_is_predicted_slow_behind() -> None:
    seen = [
        pruned(None, 0.0, -0.9),
        pruned(0.5, -0.9, -0.85),
        *(pruned(level, -0.9 - 0.01 * i, -0.8) for i, level in enumerate((0.4, 0.3, 0.2, 0.1))),
    ]
    dense = pruned(None, 0.0, 0.0, "b").values
    assert not surrogate.unpromising(LEVELS, seen, dense)
    assert surrogate.unpromising(LEVELS, seen, dense, [Observation(dense, 2.0, {})])


def test_nothing_is_unpromising_while_nothing_keeps_the_limits() -> None:
    seen = [pruned(None, 0.0, 0.5)]
    assert not surrogate.unpromising(LEVELS, seen, pruned(0.5, 0.0, 0.0).values)
