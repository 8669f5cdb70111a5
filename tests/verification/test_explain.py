"""The reasons given for the plan."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from autotune.deployment.goal import GOALS
from autotune.records.budget import GoalName
from autotune.records.measurement import Verdict
from autotune.records.plan import Deployment, Step
from autotune.records.report import DeployTrial, Failure
from autotune.records.task import Option
from autotune.report import describe
from autotune.verification import explain
from tests.support.trials import FAST, NAMES, trial, trial_lists


def test_describe() -> None:
    plan = Deployment(
        compress=(
            Step(name="prune", params={"ratio": 0.5, "global": True}),
            Step(name="int8_static"),
        ),
        runtime="onnxruntime",
        threads=2,
    )
    assert describe.describe(plan) == (
        "prune global=yes ratio=0.5 + int8 static, onnxruntime, 2 threads, batch 1"
    )
    assert describe.describe(Deployment()) == "dense fp32, eager, 1 thread, batch 1"


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
    found = explain.why(
        trials,
        trials[2].deployment,
        [latency_verdict(0.003, 0.0016)],
        options,
        goal=GOALS["latency"](),
    )
    assert found.binding is not None
    assert "nearest limit is that on latency" in found.binding
    assert "1.60 ms" in found.binding
    assert found.runner_up == describe.describe(trials[1].deployment)
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
    expected = (
        "1.07x faster in 1 launch, while the plan was measured in 3 (1.40 ms against 1.50 ms)"
    )
    assert describe.margin(picked, rival) == f"{expected}, quality 0.9 against 0.9"
    level = msgspec.structs.replace(rival, launches=3)
    assert describe.margin(picked, level).startswith("1.07x faster (1.40 ms")


def test_knobs_with_the_same_alternative_share_a_sentence() -> None:
    found = {"prune": "best without it: x", "bf16": "best without it: x", "threads 1": "nothing"}
    assert describe.knob_sentences(found) == [
        "prune, bf16: best without any one of them: x.",
        "threads 1: nothing.",
    ]


def test_why_when_nothing_is_feasible() -> None:
    trials = [
        trial(0, 0.004, over={"latency": 3.0}),
        trial(1, 0.002, runtime="compiled", over={"latency": 1.0}),
    ]
    found = explain.why(trials, trials[1].deployment, goal=GOALS["quality"]())
    assert "breaks them least" in found.text[0]
    assert found.runner_up is not None
    assert found.looser is not None
    assert "would not change" in found.looser


def test_why_the_baseline_is_kept() -> None:
    found = explain.why([], Deployment(), goal=GOALS["latency"](), kept_baseline=True)
    assert found.kept_baseline
    assert "baseline is kept" in found.text[0]
    assert explain.why([], None, goal=GOALS["latency"]()).text == ()


@FAST
@given(trial_lists(), st.sampled_from(NAMES), st.booleans())
def test_why_never_raises(trials: list[DeployTrial], goal: GoalName, higher: bool) -> None:
    for chosen in [None, *(t.deployment for t in trials)]:
        explain.why(trials, chosen, goal=GOALS[goal](higher))


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
    why = explain.why(trials, dense.deployment, [limit], goal=GOALS["latency"]())
    lines = [line for line in why.text if line.startswith("Rejected for its quality")]
    assert len(lines) == 2
    said = " ".join(lines)
    assert "int8 static level=2, eager, 1 thread, batch 1, though 4.00x as fast" in said
    assert "quality 0.5, a drop of 0.4 of the 0.01 allowed" in said
    assert "a drop of 0 of the 0.01 allowed, whose upper bound on these rows is 0.02" in said
    assert "int4" not in said  # a level of it kept the limit
    assert "level=1," not in said
    assert sum(line.startswith("quality: ") for line in why.refused) == 2
