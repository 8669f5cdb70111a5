"""Choosing: feasibility, order, front and the reasons given."""

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.deployment import ranking
from autotune.deployment.goal import GOALS
from autotune.records.budget import GoalName
from autotune.records.measurement import Interval, Verdict
from autotune.records.plan import Deployment, Step
from autotune.records.report import DeployTrial, Failure, Quantiles
from autotune.records.task import Option
from autotune.report import describe

NAMES: tuple[GoalName, ...] = ("quality", "latency", "energy", "throughput", "memory")
FAST = settings(deadline=None, max_examples=80)


def trial(
    number: int,
    latency: float = 0.001,
    quality: float | None = 0.9,
    *,
    runtime: str = "eager",
    threads: int = 1,
    compress: tuple[Step, ...] = (),
    energy: float | None = None,
    over: dict[str, float] | None = None,
) -> DeployTrial:
    return DeployTrial(
        number=number,
        deployment=Deployment(compress=compress, runtime=runtime, threads=threads),
        state="complete",
        latency_s=Quantiles(p50=latency / 1.1, p95=latency, p99=latency * 1.2, samples=104),
        quality=quality,
        energy_j_per_sample=energy,
        memory_bytes=1000 * (number + 1),
        throughput_per_s=1 / latency,
        constraints=over or {},
    )


@st.composite
def trial_lists(draw: st.DrawFn) -> list[DeployTrial]:
    out = []
    for number in range(draw(st.integers(0, 12))):
        state = draw(st.sampled_from(["complete", "complete", "complete", "failed", "skipped"]))
        made = trial(
            number,
            draw(st.floats(1e-4, 1e-2)),
            draw(st.none() | st.floats(0, 1)),
            runtime=draw(st.sampled_from(["eager", "onnxruntime"])),
            threads=draw(st.integers(1, 2)),
            energy=draw(st.none() | st.floats(1e-3, 1)),
            over={"latency": draw(st.floats(-0.9, 2)), "quality": draw(st.floats(-2, 2))},
        )
        made = msgspec.structs.replace(made, state=state)
        if draw(st.booleans()):
            made = msgspec.structs.replace(made, latency_s=None)
        out.append(made)
    return out


def against(trials: list[DeployTrial], limit: float) -> list[DeployTrial]:
    """The same measurements against a latency limit in seconds."""
    return [
        msgspec.structs.replace(
            t, constraints=t.constraints | {"latency": 1 / (t.throughput_per_s or 1) / limit - 1}
        )
        for t in trials
    ]


@FAST
@given(trial_lists(), st.floats(1e-4, 1e-2), st.floats(0.1, 1.0))
def test_tightening_never_adds_a_feasible_plan(
    trials: list[DeployTrial], limit: float, factor: float
) -> None:
    before = {t.number for t in against(trials, limit) if t.feasible}
    after = {t.number for t in against(trials, limit * factor) if t.feasible}
    assert after <= before


@FAST
@given(trial_lists(), st.sampled_from(NAMES), st.booleans())
def test_the_chosen_plan_is_never_infeasible(
    trials: list[DeployTrial], goal: GoalName, higher: bool
) -> None:
    def same(a: DeployTrial, b: DeployTrial) -> bool:
        assert a.quality is not None
        assert b.quality is not None
        return abs(a.quality - b.quality) < 0.2

    ranked = ranking.order(trials, GOALS[goal](higher), indistinguishable=same)
    assert {t.number for t in ranked} == {t.number for t in trials if t.state == "complete"}
    flags = [t.feasible for t in ranked]
    assert flags == sorted(flags, reverse=True)
    violations = [ranking.violation(t) for t in ranked if not t.feasible]
    assert violations == sorted(violations)


@FAST
@given(trial_lists(), st.booleans())
def test_nothing_beats_the_front(trials: list[DeployTrial], higher: bool) -> None:
    sign = 1 if higher else -1
    front = ranking.pareto(trials, higher)
    known = {
        t.number: t
        for t in trials
        if t.state == "complete" and t.latency_s and t.quality is not None
    }
    assert set(front) <= set(known)
    assert bool(front) == bool(known)
    for number in front:
        mine = known[number]
        for other in known.values():
            assert not (
                other.latency_s.p50 < mine.latency_s.p50
                and sign * other.quality > sign * mine.quality
                and (other.energy_j_per_sample or 0) < (mine.energy_j_per_sample or math.inf)
                and (other.energy_j_per_sample is None) == (mine.energy_j_per_sample is None)
            )


def test_violation() -> None:
    assert ranking.violation(trial(0, over={"memory": 0.5})) == 0.5
    assert ranking.violation(trial(0, over={"memory": 0.5, "energy": -3.0})) == 0.5
    failed = msgspec.structs.replace(trial(0), state="failed")
    assert ranking.violation(failed) == math.inf
    assert not failed.feasible


def test_quality_goal_takes_the_fastest_of_the_indistinguishable() -> None:
    trials = [trial(0, 0.004, 0.95), trial(1, 0.002, 0.949), trial(2, 0.001, 0.90)]
    alone = ranking.order(trials, GOALS["quality"](True))
    assert [t.number for t in alone] == [0, 1, 2]
    close = ranking.order(
        trials, GOALS["quality"](), indistinguishable=lambda a, b: abs(a.quality - b.quality) < 0.01
    )
    assert [t.number for t in close] == [1, 0, 2]


@pytest.mark.parametrize("goal", ["quality", "latency", "throughput"])
def test_a_lossless_plan_goes_before_a_compressed_one_that_gains_only_noise(goal: GoalName) -> None:
    int8 = (Step(name="int8_static"),)
    near = [trial(0, 1.02e-3, runtime="onnxruntime"), trial(1, 1e-3, compress=int8)]
    assert [t.number for t in ranking.order(near, GOALS[goal]())] == [0, 1]
    far = [trial(0, 1.05e-3, runtime="onnxruntime"), trial(1, 1e-3, compress=int8)]
    assert [t.number for t in ranking.order(far, GOALS[goal]())] == [1, 0]
    broken = [trial(0, 1e-3, over={"latency": 0.1}), trial(1, 1e-3, compress=int8)]
    assert [t.number for t in ranking.order(broken, GOALS[goal]())] == [1, 0]


def test_ties_in_latency_go_to_energy() -> None:
    trials = [trial(0, 0.002, 0.9, energy=0.2), trial(1, 0.002, 0.9, energy=0.1)]
    assert ranking.order(trials, GOALS["quality"](True))[0].number == 1


@pytest.mark.parametrize(
    ("goal", "best"), [("latency", 2), ("energy", 1), ("throughput", 2), ("memory", 0)]
)
def test_goals(goal: GoalName, best: int) -> None:
    trials = [
        trial(0, 0.004, energy=0.3),
        trial(1, 0.003, energy=0.1),
        msgspec.structs.replace(
            trial(2, 0.002), energy_modelled=Interval(value=0.2, low=0.1, high=0.4)
        ),
    ]
    assert ranking.order(trials, GOALS[goal]())[0].number == best


def test_lower_is_better() -> None:
    trials = [trial(0, 0.001, 3.0), trial(1, 0.002, 2.0)]
    assert ranking.order(trials, GOALS["quality"](False))[0].number == 1
    assert ranking.order(trials, GOALS["quality"](True))[0].number == 0


def test_describe() -> None:
    plan = Deployment(
        compress=(
            Step(name="prune", params={"ratio": 0.5, "global": True}),
            Step(name="int8_static"),
        ),
        runtime="onnxruntime",
        threads=2,
    )
    assert ranking.describe(plan) == (
        "prune global=yes ratio=0.5 + int8 static, onnxruntime, 2 threads, batch 1"
    )
    assert ranking.describe(Deployment()) == "dense fp32, eager, 1 thread, batch 1"


def latency_verdict(limit: float, upper: float) -> Verdict:
    return Verdict(
        name="latency",
        unit="s",
        limit=limit,
        estimate=upper * 0.95,
        lower=None,
        upper=upper,
        confidence=0.995,
        samples=300,
        verdict="MET",
        source="",
    )


def test_why() -> None:
    prune = (Step(name="prune", params={"ratio": 0.5}),)
    trials = [
        trial(0, 0.004, 0.95, over={"latency": 0.33, "quality": -0.9}),
        trial(1, 0.0025, 0.95, runtime="onnxruntime",
              over={"latency": -0.16, "quality": -0.9}),
        trial(2, 0.0015, 0.94, runtime="onnxruntime", compress=prune,
              over={"latency": -0.5, "quality": -0.1}),
        trial(3, 0.0010, 0.93, runtime="onnxruntime", threads=2, compress=prune,
              over={"latency": -0.6, "quality": 0.08}),
        msgspec.structs.replace(
            trial(4), state="failed", failure=Failure(kind="hang", message="no answer in 60 s")
        ),
        msgspec.structs.replace(trial(5), state="skipped", bound="latency is at least 9 ms"),
    ]  # fmt: skip
    options = [
        Option(kind="runtime", name="openvino", available=False, reason="pip install openvino"),
        Option(kind="compress", name="int8_static", available=True, excluded_by_user=True),
        Option(kind="runtime", name="eager", available=True),
    ]
    found = ranking.why(
        trials,
        trials[2].deployment,
        [latency_verdict(0.003, 0.0016)],
        options,
        goal=GOALS["latency"](),
    )
    assert found.binding is not None
    assert "nearest limit is that on latency" in found.binding
    assert "1.60 ms" in found.binding
    assert found.runner_up == ranking.describe(trials[1].deployment)
    assert found.margin == "1.67x slower (2.50 ms against 1.50 ms), quality 0.95 against 0.94"
    assert "dense fp32" in found.knobs["prune"]
    assert found.knobs["runtime onnxruntime"] == "without it no plan measured keeps the limits"
    assert any("pip install openvino" in line for line in found.refused)
    assert any("excluded by you" in line for line in found.refused)
    assert any("no answer in 60 s" in line for line in found.refused)
    assert any("at least 9 ms" in line for line in found.refused)
    assert found.looser is not None
    assert "10 % looser quality limit" in found.looser
    assert "1.00 ms" in found.looser
    assert any("Chosen: prune" in line for line in found.text)


def test_a_rival_that_is_faster_by_fewer_launches_says_so() -> None:
    picked = msgspec.structs.replace(trial(0, 0.0015), launches=3)
    rival = trial(1, 0.0014)
    told = "1.07x faster in 1 launch, where the plan had 3 in turn (1.40 ms against 1.50 ms)"
    assert describe.margin(picked, rival) == f"{told}, quality 0.9 against 0.9"
    level = msgspec.structs.replace(rival, launches=3)
    assert describe.margin(picked, level).startswith("1.07x faster (1.40 ms")


def test_knobs_of_which_the_same_is_to_be_said_share_a_sentence() -> None:
    found = {"prune": "best without it: x", "bf16": "best without it: x", "threads 1": "nothing"}
    assert describe.told(found) == [
        "prune, bf16: best without any one of them: x.",
        "threads 1: nothing.",
    ]


def test_why_when_nothing_is_feasible() -> None:
    trials = [
        trial(0, 0.004, over={"latency": 3.0}),
        trial(1, 0.002, runtime="compiled", over={"latency": 1.0}),
    ]
    found = ranking.why(trials, trials[1].deployment, goal=GOALS["quality"]())
    assert "breaks them least" in found.text[0]
    assert found.runner_up is not None
    assert found.looser is not None
    assert "would not change" in found.looser


def test_why_the_baseline_is_kept() -> None:
    found = ranking.why([], Deployment(), goal=GOALS["latency"](), kept_baseline=True)
    assert found.kept_baseline
    assert "baseline is kept" in found.text[0]
    assert ranking.why([], None, goal=GOALS["latency"]()).text == ()


@FAST
@given(trial_lists(), st.sampled_from(NAMES), st.booleans())
def test_why_never_raises(trials: list[DeployTrial], goal: GoalName, higher: bool) -> None:
    for chosen in [None, *(t.deployment for t in trials)]:
        ranking.why(trials, chosen, goal=GOALS[goal](higher))


def test_what_the_quality_guard_rejects_is_named_once_a_kind_with_the_drop() -> None:
    def tried(number: int, name: str, drop: float, upper: float, latency: float) -> DeployTrial:
        step = (Step(name=name, params={"level": number}),)
        made = trial(number, latency, 0.9 - drop, compress=step, over={"quality": upper / 0.01 - 1})
        return msgspec.structs.replace(made, drop=drop, drop_upper=upper)

    dense = msgspec.structs.replace(trial(0, 0.004), constraints={"quality": -1.0}, drop=0.0)
    trials = [
        dense,
        tried(1, "int8_static", 0.5, 0.6, 0.001),
        tried(2, "int8_static", 0.4, 0.5, 0.001),
        tried(3, "bf16", 0.0, 0.02, 0.003),
        tried(4, "int4_weights", 0.3, 0.4, 0.001),
        tried(5, "int4_weights", 0.0, 0.001, 0.005),
    ]
    limit = Verdict(
        name="quality",
        unit="",
        limit=0.01,
        estimate=0.0,
        lower=None,
        upper=None,
        confidence=0.95,
        samples=400,
        verdict="MET",
        source="paired",
    )
    why = ranking.why(trials, dense.deployment, [limit], goal=GOALS["latency"]())
    lines = [line for line in why.text if line.startswith("Rejected for its quality")]
    assert len(lines) == 2
    said = " ".join(lines)
    assert "int8 static level=2, eager, 1 thread, batch 1, though 4.00x as fast" in said
    assert "quality 0.5, a drop of 0.4 of the 0.01 allowed" in said
    assert "a drop of 0 of the 0.01 allowed, which these rows cannot tell from one of 0.02" in said
    assert "int4" not in said  # a level of it kept the limit
    assert "level=1," not in said
    assert sum(line.startswith("quality: ") for line in why.refused) == 2
