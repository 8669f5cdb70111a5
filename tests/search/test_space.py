"""Search spaces: every sampled plan is legal, restrictions are obeyed, equal plans are equal."""

import random
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.context import thread_counts
from autotune.deployment import search_space
from autotune.errors import UsageError
from autotune.records.budget import Effort
from autotune.records.hardware import Profile
from autotune.records.plan import Optimizer, Recipe
from autotune.records.task import Dim, Layout, Option, Survey
from autotune.search import space
from autotune.training import optimizers
from autotune.training import search_space as training_search_space
from tests.support.simulated import AWARE, OPTIONS, TRAITS, info


def survey(options: tuple[Option, ...] = OPTIONS) -> Survey:
    return Survey(task=info(), traits=TRAITS, options=options)


def picker(seed: int) -> "space.Callable[[Dim], space.Value]":
    rng = random.Random(seed)

    def pick(dim: Dim) -> space.Value:
        if dim.kind == "choice":
            return rng.choice(dim.choices)
        assert dim.low is not None
        assert dim.high is not None
        return rng.uniform(dim.low, dim.high)

    return pick


@given(seed=st.integers(0, 10_000))
def test_every_sampled_deployment_is_legal(seed: int) -> None:
    legal = {o.name: o for o in OPTIONS if o.available}
    profile = _profile()
    searched = search_space.deploy_space(survey(), (1, 2, 3), (1, 4), Effort())
    found = search_space.deployment(
        searched.sample(picker(seed)), OPTIONS, batch_size=1, recovery_epochs=3
    )
    runtime = legal[found.runtime]
    assert runtime.kind == "runtime"
    groups = [legal[step.name].group for step in found.compress]
    assert len(groups) == len(set(groups))
    assert all(search_space.reaches(legal[step.name], runtime) for step in found.compress)
    assert found.threads in thread_counts(profile, Effort())
    assert (found.recovery_epochs > 0) == any(s.name == "prune" for s in found.compress)


@given(seed=st.integers(0, 10_000))
def test_every_sampled_recipe_is_legal_and_comes_back(seed: int) -> None:
    searched = training_search_space.train_space(survey(), Effort())
    values = searched.sample(picker(seed))
    recipe = training_search_space.recipe(values, ("single", 1, 2), searched)
    assert (recipe.momentum is not None) == (recipe.optimizer in optimizers.HEAVY)
    assert (recipe.beta1 is not None) == (recipe.optimizer in optimizers.TWO_MOMENTS)
    assert not (recipe.warmup and recipe.schedule == "one_cycle")
    family = optimizers.of(recipe.optimizer)
    at_32 = recipe.lr / optimizers.scale(recipe.optimizer, recipe.batch_size)
    assert family.low * 0.999 <= at_32 <= family.high * 1.001
    back = training_search_space.values_near(recipe, searched)
    assert back is not None
    assert back.pop(family.lr) == pytest.approx(values[family.lr])
    assert back == {name: value for name, value in values.items() if name != family.lr}


def test_the_hash_changes_with_the_space_alone(profile: Profile) -> None:
    one = search_space.deploy_space(survey(), (1, 2), (1,), Effort())
    same = search_space.deploy_space(survey(), (1, 2), (1,), Effort())
    other = search_space.deploy_space(survey(), (1, 2, 3), (1, 4), Effort())
    assert one.hash == same.hash != other.hash


def test_the_default_recipe_lies_inside() -> None:
    searched = training_search_space.train_space(survey(), Effort())
    assert training_search_space.values_of(Recipe(), searched) is not None
    assert training_search_space.values_of(Recipe(lr=5.0), searched) is None


def test_only_keeps_and_without_drops() -> None:
    kept = space.restrict(OPTIONS, Effort(only=("runtime=eager,compiled",), without=("prune",)))
    assert [o.name for o in kept if o.kind == "runtime" and o.available] == ["compiled", "eager"]
    assert not any(o.name == "prune" and o.available for o in kept)
    few = Effort(only=("optimizer=sgd,adam,adamw",), without=("sgd",))
    assert space.optimizers(space.restrict(OPTIONS, few)) == ("adam", "adamw")
    assert space.optimizers(space.restrict(OPTIONS, Effort(only=("muon",)))) == ("muon",)


def test_a_refused_optimizer_is_not_searched_and_says_why() -> None:
    options = tuple(
        msgspec.structs.replace(o, available=False, reason="no hidden matrix")
        if o.name == "muon"
        else o
        for o in OPTIONS
    )
    assert "muon" not in space.optimizers(options)
    with pytest.raises(UsageError, match="muon is refused: no hidden matrix"):
        space.optimizers(space.restrict(options, Effort(only=("optimizer=muon",))))


def test_every_rule_is_of_one_family() -> None:
    found = [rule for family in optimizers.FAMILIES for rule in family.rules]
    assert sorted(found) == sorted(get_args(Optimizer))


def test_the_first_choice_is_to_do_without() -> None:
    searched = training_search_space.train_space(survey(), Effort())
    made = training_search_space.recipe(space.complete(searched, {}), ("single", 1, 1))
    plain = msgspec.structs.replace(
        made, lr=1e-3, weight_decay=0.0, batch_size=32, beta1=None, beta2=None
    )
    assert plain == Recipe()


def test_what_the_loss_cannot_smooth_is_not_searched() -> None:
    plain = Survey(task=info(smoothable=False), traits=TRAITS, options=OPTIONS)
    names = [n.dim.name for n in training_search_space.train_space(plain, Effort()).nodes]
    assert "label_smoothing" not in names
    assert {"schedule", "warmup", "clip_norm", "ema"} <= set(names)


def test_the_users_own_values_are_in_the_space() -> None:
    given = {
        "optimizer": "nesterov", "lr": 0.1, "momentum": 0.95, "schedule": "cosine",
        "warmup": 0.03, "clip_norm": 0.7, "label_smoothing": 0.2, "ema": 0.998,
        "weight_decay": 5e-4, "batch_size": 64,
    }  # fmt: skip
    mine = Survey(task=info(recipe=given), traits=TRAITS, options=OPTIONS)
    base = training_search_space.baseline(mine)
    values = training_search_space.values_of(
        base, training_search_space.train_space(mine, Effort())
    )
    assert values is not None
    again = training_search_space.recipe(
        values, ("single", 1, 1), training_search_space.train_space(mine, Effort())
    )
    assert again.lr == pytest.approx(base.lr)
    assert msgspec.structs.replace(again, lr=base.lr) == base


@pytest.mark.parametrize(
    "odd", [{"schedule": "one_cycle", "warmup": 0.1}, {"optimizer": "rmsprop", "momentum": 0.9}]
)
def test_a_recipe_that_would_lose_something_lies_outside(odd: dict[str, Any]) -> None:
    searched = training_search_space.train_space(survey(), Effort())
    assert training_search_space.values_of(Recipe(**odd), searched) is None


def _begun(searched: space.Space, times: int = 4) -> list[Recipe]:
    found = training_search_space.initial(searched, Recipe(), times=times)
    return [training_search_space.recipe(values, ("single", 1, 1), searched) for values, _ in found]


def test_a_search_begins_with_recipes_in_use() -> None:
    searched = training_search_space.train_space(survey(), Effort())
    begun = _begun(searched)
    assert len({space.canonical(r) for r in begun}) == len(begun) == 7
    assert (begun[0].optimizer, begun[0].schedule) == ("adamw", "one_cycle")
    assert begun[0].lr == pytest.approx(3e-3 * 2**0.5)  # the square-root rule, at twice 32
    assert begun[1].optimizer == "adafactor"
    assert begun[2].lr == pytest.approx(2e-3)
    assert {r.ema for r in begun} == {optimizers.AVERAGED}
    own = optimizers.initial(Recipe(ema=0.9), 64, "fp32")
    assert {r.ema for r, _ in own} == {0.9}
    few = _begun(searched, times=2)  # of steps
    assert (few[1].optimizer, few[1].schedule) == ("adam", "constant")
    assert {r.optimizer for r in begun} == {"adafactor", "adam", "adamw", "muon", "nesterov"}


def test_seeds_keep_to_what_is_allowed() -> None:
    effort = Effort(
        without=("adafactor", "muon", "nesterov"), fix=("lr=5e-4", "schedule=cosine", "ema=0")
    )
    mine = Survey(task=info(), traits=TRAITS, options=space.restrict(OPTIONS, effort))
    searched = training_search_space.train_space(mine, effort)
    begun = [
        training_search_space.recipe(v, ("single", 1, 1), searched)
        for v, _ in training_search_space.initial(searched, Recipe())
    ]
    assert {r.optimizer for r in begun} == {"adam", "adamw"}
    assert {(r.lr, r.schedule, r.ema) for r in begun} == {(5e-4, "cosine", None)}


def test_a_loop_of_ones_own_is_searched_in_what_it_honours() -> None:
    task = info(tunes=("lr", "schedule"), own_train=True)
    mine = Survey(task=task, traits=TRAITS, options=OPTIONS)
    searched = training_search_space.train_space(mine, Effort())
    free = {
        node.dim.name for node in searched.nodes if len(node.dim.choices) != 1
    }  # the rest is held
    assert free == {f.lr for f in optimizers.FAMILIES} | {"schedule"}
    found = [
        training_search_space.recipe(v, ("single", 1, 1), searched)
        for v, _ in training_search_space.initial(searched, Recipe())
    ]
    assert {r.optimizer for r in found} == {"adam"}
    assert {(r.clip_norm, r.ema, r.label_smoothing) for r in found} == {(None, None, 0.0)}


def test_nothing_left_is_an_error(profile: Profile) -> None:
    kept = space.restrict(OPTIONS, Effort(without=("eager", "compiled", "onnxruntime")))
    with pytest.raises(UsageError, match="excluded by you"):
        search_space.deploy_space(survey(kept), (1,), (1,), Effort())
    with pytest.raises(UsageError, match="no such choice"):
        space.restrict(OPTIONS, Effort(without=("openvino",)))


def test_the_fastest_layout_wins_and_ties_go_to_fewer_cores() -> None:
    legal = (("single", 1, 1), ("single", 1, 2), ("ddp", 2, 1))

    def layout(parallel: str, ranks: int, threads: int, rate: float | None, batch: int) -> Layout:
        return Layout(
            parallel=parallel, ranks=ranks, threads=threads, batch_size=batch,
            precision="fp32", samples_per_s=rate,
        )  # fmt: skip

    measured = (
        layout("single", 1, 1, 1000, 32),
        layout("single", 1, 2, 1030, 32),
        layout("ddp", 2, 1, 400, 32),
        layout("single", 1, 1, 1000, 256),
        layout("single", 1, 2, 1500, 256),
        layout("ddp", 2, 1, 1900, 256),
    )
    assert training_search_space.fastest_layout(measured, 32, "fp32", legal) == ("single", 1, 1)
    assert training_search_space.fastest_layout(measured, 512, "fp32", legal) == ("ddp", 2, 1)
    assert training_search_space.fastest_layout((), 32, "fp32", legal) == legal[0]


def test_seeds_are_inside_and_combine(profile: Profile) -> None:
    searched = search_space.deploy_space(survey(), (1, 2), (1,), Effort())
    seeds = search_space.initial_configurations(searched, OPTIONS, 2)
    plans = [
        search_space.deployment(values, OPTIONS, batch_size=1, recovery_epochs=1)
        for values in seeds
    ]
    assert len({space.canonical(p) for p in plans}) == len(plans)
    assert any(len(p.compress) == 2 for p in plans)
    assert all(p.threads == 2 for p in plans)


def _profile() -> Profile:
    from autotune.records.hardware import Cpu

    cpu = Cpu(
        vendor=None, model=None, architecture="x86_64", logical_cores=3, physical_cores=3,
        usable_cores=3.0,
    )  # fmt: skip
    return Profile(
        name="p", created_utc="", fingerprint="", cpu=cpu, memory_bytes=1, usable_memory_bytes=1
    )


def test_thread_counts_follow_the_usable_cores() -> None:
    assert thread_counts(_profile(), Effort()) == (1, 2, 3)
    assert thread_counts(_profile(), Effort(threads=2)) == (2,)


def test_what_is_fixed_is_held(profile: Profile) -> None:
    effort = Effort(fix=("lr=3e-3", "macs_kept=0.5", "runtime=eager", "batch_size=32"))
    train = training_search_space.train_space(survey(), effort)
    deploy = search_space.deploy_space(survey(), (1,), (1,), effort)
    space.check_fixed(effort.fix, (train, deploy))
    assert train.sample(picker(0))["batch_size"] == 32
    dims = {node.dim.name: node.dim.choices for node in (*train.nodes, *deploy.nodes)}
    assert dims["lr_adaptive"] == dims["lr_sgd"] == (3e-3,)
    assert dims["prune.macs_kept"] == (0.5,)
    for values in search_space.initial_configurations(deploy, OPTIONS, 1):
        assert values["runtime"] == "eager"


@pytest.mark.parametrize("text", ["shoe=3", "lr", "lr=much", "lr=1000", "runtime=tpu"])
def test_a_wrong_fix_is_an_error(text: str) -> None:
    with pytest.raises(UsageError, match=f"--fix {text}"):
        space.check_fixed(
            (text,),
            (
                training_search_space.train_space(survey(), Effort(fix=(text,))),
                search_space.deploy_space(survey(), (1,), (1,), Effort(fix=(text,))),
            ),
        )


def test_a_single_thread_count_is_the_one_that_is_served_with() -> None:
    searched = search_space.deploy_space(survey(), (2,), (1,), Effort())
    values = searched.sample(picker(0))
    found = search_space.deployment(values, OPTIONS, batch_size=1, recovery_epochs=0)
    assert found.threads == 2


@pytest.mark.parametrize(
    ("group", "dtype"), [("quantize", "int8"), ("precision", "bf16"), ("prune", None)]
)
def test_what_is_kept_in_fp32_is_a_parameter_of_every_step_that_rounds(
    group: str, dtype: str | None
) -> None:
    step = Option(
        kind="compress",
        name="made_up",
        available=True,
        takes="module",
        gives="module",
        group=group,
        dtype=dtype,
    )
    values = {"runtime": "eager", group: "made_up", "threads": 1}
    found = search_space.deployment(
        values, (step,), batch_size=1, recovery_epochs=0.0, keep_fp32=("head", "0.*")
    )
    assert found.compress[0].params == ({"keep_fp32": "head,0.*"} if dtype else {})


def test_a_step_that_is_not_searched_is_no_dimension() -> None:
    options = (*OPTIONS, AWARE)
    searched = search_space.deploy_space(survey(options), (1,), (1,), Effort())
    assert searched == search_space.deploy_space(survey(), (1,), (1,), Effort())
    seeds = [
        search_space.initial_configurations(searched, found, 1) for found in (options, OPTIONS)
    ]
    assert seeds[0] == seeds[1]
