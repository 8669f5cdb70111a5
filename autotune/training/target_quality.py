"""Training to a target quality at the least cost: time, energy, or Zeus's weighted sum of both.

    cost = eta * energy + (1 - eta) * largest power * time        (You et al., NSDI'23)

With eta 0 the cost is the time, in seconds; else it is in joules.  A training ends at the first
evaluation on *validation* that reaches the target; there are more evaluations than halving needs.
Where energy cannot be measured eta counts as 0, and the report says so.
"""

from autotune.context import RunContext
from autotune.records import job as jobs
from autotune.records.measurement import Verdict
from autotune.records.report import Execution, TrainTrial

_LOOKS = 27
_NOT_REACHED = 1e3


def eta(run: RunContext) -> float:
    """The weight of energy, from 0 to 1; 0 where it cannot be measured."""
    return 0.0 if run.meter is None else run.budget.eta or 0.0


def most_w(run: RunContext) -> float:
    """The largest power in watts: the GPUs' limits and ``--cpu-max-w``, as far as known."""
    gpus = sum((gpu.power_limit_w or 0.0) * gpu.count for gpu in run.profile.gpus)
    return gpus + (run.effort.cpu_max_w or 0.0)


def cost(run: RunContext, time_s: float, energy_j: float | None) -> float | None:
    """The cost of a training in joules, or in seconds where energy weighs nothing; None where the
    energy is not known.
    """
    share = eta(run)
    if share == 0.0:
        return time_s
    if energy_j is None:
        return None
    return share * energy_j + (1 - share) * most_w(run) * time_s


def unit(run: RunContext) -> str:
    """The unit of a cost: J or s."""
    return "J" if eta(run) else "s"


def looks(run: RunContext, rungs: tuple[float, ...]) -> tuple[float, ...]:
    """The rungs of a training, and some 27 further looks where it ends at a target quality."""
    if run.budget.target_quality is None:
        return rungs
    whole = rungs[-1]
    many = whole >= 3
    count = min(_LOOKS, int(whole)) if many else _LOOKS // 3
    more = (whole * n / count for n in range(1, count))
    return tuple(sorted({*rungs, *(float(int(x)) if many else round(x, 3) for x in more)}))


def objective(trial: TrainTrial, distance: float) -> float:
    """What is minimised: c -> b c / (b + c) of the mean cost over a trial's seeds, which rises with
    it and stays below b; where the target was missed with any seed, b and the ``distance`` to it.
    """
    found = [c for c in trial.costs if c is not None]
    if not found or len(found) < len(trial.costs):
        return _NOT_REACHED + distance
    mean = sum(found) / len(found)
    return _NOT_REACHED * mean / (mean + _NOT_REACHED)


def reached_cost(
    run: RunContext, trial: TrainTrial, done: jobs.Trained
) -> tuple[float | None, ...]:
    """The cost of a trial's own seed, once it has ended."""
    if run.budget.target_quality is None or trial.state != "complete":
        return ()
    return (cost(run, trial.train_s or 0.0, trial.energy_j) if done.reached else None,)


def report_lines(run: RunContext, winner: TrainTrial, baseline: TrainTrial | None) -> list[str]:
    """Lines for the report: what reaching the target costs, and what the baseline needs."""
    target = run.budget.target_quality
    if target is None:
        return []
    lines = []
    if run.budget.eta and run.meter is None:
        lines.append("Energy cannot be measured here: --eta counts as 0, time alone is the cost.")
    text = f"Quality {target:g} on validation: the recipe {_named(run, winner)}"
    if baseline is not None and baseline.number != winner.number:
        text += f"; the baseline recipe {_named(run, baseline)}"
    return [*lines, text + "."]


def _named(run: RunContext, trial: TrainTrial) -> str:
    found = [c for c in trial.costs if c is not None]
    if not found:
        return "does not reach it"
    label = f" ({trial.energy_label})" if eta(run) and trial.energy_label else ""
    missed = len(trial.costs) - len(found)
    seeds = f", not with {missed} of {len(trial.costs)} seeds" if missed else ""
    return f"takes {sum(found) / len(found):.4g} {unit(run)}{label}{seeds}"


def verdicts(run: RunContext, done: Execution) -> tuple[Verdict, ...]:
    """Whether the final training has the quality that was asked for."""
    target = run.budget.target_quality
    if target is None:
        return ()
    higher, found = run.survey.task.higher_is_better, done.validation_quality
    met = found is not None and (found >= target if higher else found <= target)
    return (
        Verdict(
            name="target_quality",
            unit="",
            limit=target,
            estimate=found,
            lower=found,
            upper=found,
            confidence=1.0,
            samples=0 if found is None else 1,
            verdict="NOT_MEASURED" if found is None else "MET" if met else "NOT_MET",
            source="quality on validation at the end of the final training",
            at_least=higher,
        ),
    )
