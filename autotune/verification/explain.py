"""Why this plan: from what verification concluded and what was tried to sentences."""

from collections.abc import Sequence

import msgspec

from autotune import units
from autotune.deployment import DeploymentEvaluator, ranking
from autotune.deployment.goal import Goal
from autotune.meters import modelled
from autotune.records.measurement import Verdict
from autotune.records.plan import Deployment
from autotune.records.report import DeployTrial, Why
from autotune.records.task import Option
from autotune.report import describe
from autotune.verification import launches
from autotune.verification.launches import Verified
from autotune.verification.select import Conclusion

_SHOWN = 3
"""Kinds of compression that were rejected for their quality, in sentences."""
_NO_LIMIT = {"failed", "bound"}  # constraints of trials that were never measured


def explain(evaluator: DeploymentEvaluator, found: Conclusion, *, given: bool) -> Why:
    """Why this plan, in fields and sentences; a ``given`` one was not searched for."""
    chosen = found.chosen
    extra = [found.kept_baseline] if found.kept_baseline else []
    extra += _measured(evaluator, chosen, beside_baseline=not found.kept_baseline)
    if given:
        return Why(text=("The plan was given; nothing was searched.", *extra))
    fallen = [
        (other.side.deployment, limits)
        for other in found.tested
        if other.side.deployment != chosen.side.deployment
        and (limits := describe.broken(other.verdicts))
    ]
    reasons = why(
        [t.trial for t in evaluator.tried],
        chosen.side.deployment,
        chosen.verdicts,
        evaluator.run.survey.options,
        goal=evaluator.goal,
        fallen=fallen,
    )
    text = (*extra, *_robustness(evaluator), *reasons.text)
    return msgspec.structs.replace(
        reasons, text=text, kept_baseline=found.kept_baseline is not None
    )


def _measured(
    evaluator: DeploymentEvaluator, chosen: Verified, *, beside_baseline: bool
) -> list[str]:
    """What the chosen plan's launches showed beside those of others."""
    out = []
    if (c := chosen.comparison) is not None and beside_baseline:
        sure = "beyond noise" if c.beyond_noise else "within noise"
        out.append(
            f"Measured side by side it takes {c.ratio:.3g}x the baseline's time "
            f"(95 % interval {c.low:.3g} to {c.high:.3g}): {sure}."
        )
        unkept = launches.unkept(evaluator.run, chosen) if chosen.met else ()
        if unkept and not (c.beyond_noise and c.ratio < 1):
            names = " and ".join(name.replace("_", " ") for name in unkept)
            out.append(f"It replaces the baseline, which does not keep the limit on {names}.")
    if (beaten := chosen.beaten) is not None:
        out.append(
            f"It compresses nothing and takes {beaten.by.ratio:.3g}x the time of the search's "
            f"choice, {describe.describe(beaten.deployment)}, which keeps every limit too "
            f"(95 % interval {beaten.by.low:.3g} to {beaten.by.high:.3g}, launched in turn)."
        )
    return out


def _robustness(evaluator: DeploymentEvaluator) -> list[str]:
    """Whether the order of the plans by modelled energy depends on the assumed power model."""
    run = evaluator.run
    if run.meter is not None or (run.budget.energy is None and run.budget.goal != "energy"):
        return []
    uses = [
        modelled.Use(
            t.launch.cpu_s, t.launch.window_s, t.launch.window_calls * t.trial.deployment.batch_size
        )
        for t in evaluator.tried
        if t.launch is not None
    ]
    if len(uses) < 2:
        return []
    return [f"Energy is modelled: {modelled.rank_robustness(uses, run.profile.cpu.cores)}."]


def why(
    trials: Sequence[DeployTrial],
    chosen: Deployment | None,
    verdicts: Sequence[Verdict] = (),
    options: Sequence[Option] = (),
    *,
    goal: Goal,
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
        return ranking.order(some, goal)

    ranked = rank(trials)
    picked = next((t for t in ranked if t.deployment == chosen), None)
    others = [t for t in ranked if t.deployment != chosen]
    better = _runner_up(picked, others)
    binding = describe.binding(verdicts)
    margin = describe.margin(picked, better) if picked and better else None
    knobs = describe.knobs(picked, ranked, rank) if picked else {}
    looser = _looser(trials, picked, rank, {v.name for v in verdicts if v.limit <= 0})
    limit = next((v.limit for v in verdicts if v.name == "quality"), None)
    lost = describe.rejected_for_quality(trials, picked, limit)
    text = [
        _chosen_text(chosen, picked, goal, measured, kept_baseline) if chosen else None,
        *(
            f"Verification turned down {describe.describe(plan)}: {limits}."
            for plan, limits in fallen
        ),
        binding,
        f"Runner-up: {describe.describe(better.deployment)}: {margin}."
        if better and margin
        else None,
        *describe.knob_sentences(knobs),
        looser,
        *(f"Rejected for its quality: {line}." for line in lost[:_SHOWN]),
        _more(len(lost) - _SHOWN),
    ]
    return Why(
        binding=binding,
        runner_up=describe.describe(better.deployment) if better else None,
        margin=margin,
        knobs=knobs,
        refused=(
            *describe.refused(options),
            *describe.failures(trials),
            *(f"quality: {line}" for line in lost),
        ),
        looser=looser,
        kept_baseline=kept_baseline,
        text=tuple(line for line in text if line),
    )


def _more(kinds: int) -> str | None:
    if kinds <= 0:
        return None
    what = "kind of compression was" if kinds == 1 else "kinds of compression were"
    return f"{kinds} more {what} rejected for quality."


def _runner_up(picked: DeployTrial | None, others: Sequence[DeployTrial]) -> DeployTrial | None:
    """The best other plan; one outside the budgets only where the chosen is outside too."""
    if not others or (picked is not None and picked.feasible and not others[0].feasible):
        return None
    return others[0]


def _chosen_text(
    chosen: Deployment, picked: DeployTrial | None, goal: Goal, tried: int, kept_baseline: bool
) -> str:
    name = describe.describe(chosen)
    if kept_baseline:
        return f"The baseline is kept ({name}): no plan beat it beyond noise and kept the limits."
    if picked is not None and not picked.feasible:
        return (
            f"No plan of {tried} measured kept every limit in the search; {name} breaks them least."
        )
    aside = (
        f" (to {units.percent(ranking.CLOSE)}, where a lossless plan goes first)"
        if chosen.lossless
        else ""
    )
    return f"Chosen: {name}; {goal.reason}{aside}, of {tried} plans measured."


def _looser(
    trials: Sequence[DeployTrial],
    picked: DeployTrial | None,
    rank: describe.Rank,
    rigid: set[str],
) -> str | None:
    """What each budget, loosened by a tenth, would let in; a limit of 0 (``rigid``) has no
    tenth.
    """
    names = sorted({name for trial in trials for name in trial.constraints} - _NO_LIMIT - rigid)
    if picked is None or not names:
        return None
    lines = []
    for name in names:
        allowed = rank([describe.loosened(trial, name) for trial in trials])
        best = allowed[0] if allowed else None
        if best is None or not best.feasible or best.deployment == picked.deployment:
            continue
        if not picked.feasible or not _already(best, trials):
            lines.append(f"a 10 % looser {name} limit would allow {describe.brief(best)}")
    if not lines:
        return "Loosening any single limit by 10 % would not change the plan."
    text = "; ".join(lines)
    return f"{text[0].upper()}{text[1:]} (this plan: {describe.brief(picked)})."


def _already(best: DeployTrial, trials: Sequence[DeployTrial]) -> bool:
    """The plan was within the limits as they are (so it lost for another reason)."""
    return any(trial.feasible for trial in trials if trial.number == best.number)
