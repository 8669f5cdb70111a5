"""Which plan, and why: feasible set, order, Pareto front, the reasons in words.

    trials --feasible--> best by the goal --ties in quality--> lowest latency, then energy
       |                                                             |
       +--infeasible, by least violation (after all feasible)        +--> why

Pure: what is indistinguishable within noise is for the caller to say.
"""

import math
from collections.abc import Callable, Sequence

from autotune import units
from autotune.deployment import metrics
from autotune.deployment.goal import Goal
from autotune.records.measurement import Verdict
from autotune.records.plan import Deployment
from autotune.records.report import DeployTrial, Why
from autotune.records.task import Option
from autotune.report import describe as report_describe
from autotune.report.describe import describe, latency_of

__all__ = [
    "describe",
    "latency_of",
    "lossless_first",
    "order",
    "pareto",
    "violation",
    "why",
]

CLOSE = 0.03
"""Differences of one screening launch up to this share are noise."""
_SHOWN = 3
_NO_BUDGET = {"failed", "bound"}  # constraints of trials that were never measured
Same = Callable[[DeployTrial, DeployTrial], bool]


def violation(trial: DeployTrial) -> float:
    """Sum over budgets of ``measured / budget - 1`` where positive; infinite if not completed."""
    if trial.state != "complete":
        return math.inf
    return math.fsum(max(0.0, value) for value in trial.constraints.values())


def _or_last(value: float | None) -> float:
    return math.inf if value is None else value


def order(
    trials: Sequence[DeployTrial], goal: Goal, *, indistinguishable: Same | None = None
) -> tuple[DeployTrial, ...]:
    """Completed trials, best first: feasible ones by the goal, then the rest by violation.

    Under the goal *quality* the plans that ``indistinguishable`` cannot tell from the best
    come first, by latency at the budget's percentile and then energy.  A lossless plan within
    `CLOSE` of the first comes before it: what compression gains there is noise, what it risks
    is not.
    """
    done = [trial for trial in trials if trial.state == "complete"]

    def by_latency(trial: DeployTrial) -> tuple[float, ...]:
        energy, loss = metrics.known_energy(trial), goal.loss(trial)
        return _or_last(latency_of(trial)), _or_last(energy), _or_last(loss), trial.number

    def rank(trial: DeployTrial) -> tuple[float, ...]:
        return _or_last(goal.value(trial)), *by_latency(trial)

    good = sorted((trial for trial in done if trial.feasible), key=rank)
    bad = [trial for trial in done if not trial.feasible]
    bad.sort(key=lambda trial: (violation(trial), *rank(trial)))
    if goal.by_quality and good:
        same = [t for t in good if t is good[0] or _tied(t, good[0], indistinguishable)]
        same.sort(key=by_latency)
        kept = {id(trial) for trial in same}
        good = [*same, *(trial for trial in good if id(trial) not in kept)]
    value = latency_of if goal.by_quality else goal.value
    good = lossless_first(good, lambda trial: _or_last(value(trial)))
    return (*good, *bad)


def lossless_first(
    ranked: list[DeployTrial], value: Callable[[DeployTrial], float]
) -> list[DeployTrial]:
    """The best lossless plan brought to the front where it is close to the first."""
    if not ranked or ranked[0].deployment.lossless:
        return ranked
    limit = value(ranked[0]) + CLOSE * abs(value(ranked[0]))
    near = [t for t in ranked if t.deployment.lossless and value(t) <= limit]
    if not near or math.isinf(limit):
        return ranked
    first = min(near, key=value)
    return [first, *(t for t in ranked if t is not first)]


def _tied(trial: DeployTrial, best: DeployTrial, indistinguishable: Same | None) -> bool:
    if trial.quality is None or best.quality is None:
        return False
    return trial.quality == best.quality or bool(
        indistinguishable and indistinguishable(trial, best)
    )


def pareto(trials: Sequence[DeployTrial], higher_is_better: bool = True) -> tuple[int, ...]:
    """Numbers of the completed trials that none beats in latency (p50), quality and, where
    both were measured, energy; in order of latency.
    """
    known = [t for t in trials if t.state == "complete" and t.latency_s and t.quality is not None]
    front = [t for t in known if not any(_beats(o, t, higher_is_better) for o in known)]
    front.sort(key=lambda t: (t.latency_s.p50 if t.latency_s else math.inf, t.number))
    return tuple(trial.number for trial in front)


def _beats(one: DeployTrial, other: DeployTrial, higher_is_better: bool) -> bool:
    assert one.latency_s
    assert other.latency_s
    assert one.quality is not None
    assert other.quality is not None
    sign = -1 if higher_is_better else 1
    pairs = [
        (one.latency_s.p50, other.latency_s.p50),
        (sign * one.quality, sign * other.quality),
    ]
    if one.energy_j_per_sample is not None and other.energy_j_per_sample is not None:
        pairs.append((one.energy_j_per_sample, other.energy_j_per_sample))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def why(
    trials: Sequence[DeployTrial],
    chosen: Deployment | None,
    verdicts: Sequence[Verdict] = (),
    options: Sequence[Option] = (),
    *,
    goal: Goal,
    indistinguishable: Same | None = None,
    kept_baseline: bool = False,
    fallen: Sequence[tuple[Deployment, str]] = (),
) -> Why:
    """Explain the choice from what was tried.

    ``text`` holds plain sentences, the same facts as the fields.  ``kept_baseline`` says that
    nothing beat the baseline beyond noise.  ``fallen`` are plans that verification turned down,
    each with the limits that it broke: they are no rivals of the chosen one.
    """
    measured = sum(trial.state == "complete" for trial in trials)
    fell = [deployment for deployment, _ in fallen]
    trials = [trial for trial in trials if trial.deployment not in fell]

    def rank(some: Sequence[DeployTrial]) -> tuple[DeployTrial, ...]:
        return order(some, goal, indistinguishable=indistinguishable)

    ranked = rank(trials)
    picked = next((t for t in ranked if t.deployment == chosen), None)
    others = [t for t in ranked if t.deployment != chosen]
    better = _runner_up(picked, others)
    binding = report_describe.binding(verdicts)
    margin = report_describe.margin(picked, better) if picked and better else None
    knobs = report_describe.knobs(picked, ranked, rank) if picked else {}
    looser = _looser(trials, picked, rank, {v.name for v in verdicts if v.limit <= 0})
    limit = next((v.limit for v in verdicts if v.name == "quality"), None)
    lost = report_describe.guarded(trials, picked, limit)
    text = [
        _chosen_text(chosen, picked, goal, measured, kept_baseline) if chosen else None,
        *(f"Verification turned down {describe(plan)}: {limits}." for plan, limits in fallen),
        binding,
        f"Runner-up: {describe(better.deployment)}: {margin}." if better and margin else None,
        *report_describe.told(knobs),
        looser,
        *(f"Rejected for its quality: {line}." for line in lost[:_SHOWN]),
        f"And for theirs {len(lost) - _SHOWN} more kinds." if len(lost) > _SHOWN else None,
    ]
    return Why(
        binding=binding,
        runner_up=describe(better.deployment) if better else None,
        margin=margin,
        knobs=knobs,
        refused=(
            *report_describe.refused(options),
            *report_describe.failures(trials),
            *(f"quality: {line}" for line in lost),
        ),
        looser=looser,
        kept_baseline=kept_baseline,
        text=tuple(line for line in text if line),
    )


def _runner_up(picked: DeployTrial | None, others: Sequence[DeployTrial]) -> DeployTrial | None:
    """The best other plan; one outside the budgets only where the chosen is outside too."""
    if not others or (picked is not None and picked.feasible and not others[0].feasible):
        return None
    return others[0]


def _chosen_text(
    chosen: Deployment, picked: DeployTrial | None, goal: Goal, tried: int, kept_baseline: bool
) -> str:
    name = describe(chosen)
    if kept_baseline:
        return f"The baseline is kept ({name}): no plan beat it beyond noise and kept the limits."
    if picked is not None and not picked.feasible:
        return (
            f"No plan of {tried} measured kept every limit in the search; {name} breaks them least."
        )
    aside = (
        f" (to {units.percent(CLOSE)}, where a lossless plan goes first)" if chosen.lossless else ""
    )
    return f"Chosen: {name}; {goal.reason}{aside}, of {tried} plans measured."


def _looser(
    trials: Sequence[DeployTrial],
    picked: DeployTrial | None,
    rank: report_describe.Rank,
    rigid: set[str],
) -> str | None:
    """What each budget, loosened by a tenth, would let in; a limit of 0 (``rigid``) has no
    tenth.
    """
    names = sorted({name for trial in trials for name in trial.constraints} - _NO_BUDGET - rigid)
    if picked is None or not names:
        return None
    lines = []
    for name in names:
        allowed = rank([report_describe.loosened(trial, name) for trial in trials])
        best = allowed[0] if allowed else None
        if best is None or not best.feasible or best.deployment == picked.deployment:
            continue
        if not picked.feasible or not _already(best, trials):
            lines.append(f"a 10 % looser {name} limit would allow {report_describe.brief(best)}")
    if not lines:
        return "A 10 % looser limit, of any one kind, would not change the plan."
    text = "; ".join(lines)
    return f"{text[0].upper()}{text[1:]} (this plan: {report_describe.brief(picked)})."


def _already(best: DeployTrial, trials: Sequence[DeployTrial]) -> bool:
    """The plan was within the limits as they are (so it lost for another reason)."""
    return any(trial.feasible for trial in trials if trial.number == best.number)
