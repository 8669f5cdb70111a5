"""Finalists are trained again with other random seeds, so that none wins by its seed.

    complete trials, ranked by mean -> the best with fewer than three seeds gets one more
                                    -> one that was best by chance falls back; the next is repeated

All finalists get the same seeds in the same order.  The best of many trials is biased upwards, as
it was chosen by its own result; further seeds have not been chosen by.  Where there is no time
for three seeds of one finalist the report says that one seed decided.
"""

import math
from collections.abc import Sequence
from statistics import stdev

import msgspec

from autotune.context import train_job
from autotune.records.report import TrainTrial
from autotune.stats import launch_ratio
from autotune.training import target_quality
from autotune.training import trial as training_trial
from autotune.training.trial import TrainState

ROUNDS, _MOST_ROUNDS = 2, 4  # further seeds, beside a trial's own
_FINALISTS = 3
_SHARE = 0.35  # of the search's time, at most


def candidates(state: TrainState) -> list[TrainTrial]:
    """Complete trials, the best first: those within every budget, or all."""
    ranked = training_trial.ranked(state.run, state.trials)
    return [t for t in ranked if training_trial.violation(t) <= 0] or ranked


def reserve_s(state: TrainState, budget_s: float) -> float:
    """Seconds to leave for three seeds of as many finalists as fit into a share of the time."""
    return _needed(candidates(state), _SHARE * budget_s)[1]


def _needed(found: list[TrainTrial], most_s: float) -> tuple[int, float]:
    """How many finalists can have three seeds within ``most_s``, and its seconds."""
    for count in range(min(len(found), _FINALISTS), 0, -1):
        needed = ROUNDS * sum(t.wall_s for t in found[:count])
        if needed <= most_s:
            return count, needed
    return 0, 0.0


def repeat(state: TrainState, until_s: float) -> None:
    """Train finalists with further seeds until the run's clock would pass ``until_s``."""
    now = state.run.bridge.now
    count, _ = _needed(candidates(state), until_s - now())
    while count:
        trial = _next(candidates(state)[:count])
        if trial is None or now() + trial.wall_s > until_s:
            break
        state.trials[trial.number] = _again(state, trial, 1 + len(trial.repeats))
        state.run.on_progress()
    state.messages.append(_report_line(state))


def _next(leading: list[TrainTrial]) -> TrainTrial | None:
    """The first of the leading trials without three seeds; else the one with the fewest."""
    due = next((t for t in leading if len(t.repeats) < ROUNDS), None)
    if due is not None:
        return due
    fewest = min(leading, key=lambda t: len(t.repeats), default=None)
    return fewest if fewest is not None and len(fewest.repeats) < _MOST_ROUNDS else None


def _again(state: TrainState, trial: TrainTrial, number: int) -> TrainTrial:
    run, length = state.run, state.length(trial.recipe)
    info = run.survey.task

    def ask(step: float, value: float) -> bool:
        del value
        return step < length.reach

    job = train_job(
        run,
        trial.recipe,
        length.epochs,
        length.looks,
        meter=run.meter if target_quality.eta(run) else None,
        seed=run.effort.seed + number,
    )
    result = run.bridge.run(
        job, timeout_s=training_trial.timeout_s(run, length.reach), on_report=ask
    )
    if result.failure is not None:
        message = f"with seed {job.seed}: {result.failure.message}"
        failure = msgspec.structs.replace(result.failure, message=message)
        return msgspec.structs.replace(trial, state="failed", failure=failure)
    done = result.answer
    assert done is not None
    assert done.quality is not None
    repeats = (*trial.repeats, done.quality)
    costs = trial.costs
    if costs:
        joules = done.energy.total_j if done.energy else None
        costs = (*costs, target_quality.cost(run, done.train_s, joules) if done.reached else None)
    return msgspec.structs.replace(
        trial,
        repeats=repeats,
        costs=costs,
        quality_interval=interval(trial.quality, repeats, rate=info.rate or info.binary),
    )


def interval(
    first: float | None, repeats: Sequence[float], *, rate: bool = False
) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean over three or more seeds, None with fewer; that of a
    ``rate`` is cut off at 0 and 1.
    """
    if first is None or len(repeats) < ROUNDS:
        return None
    values = [first, *repeats]
    mean, n = math.fsum(values) / len(values), len(values)
    half = launch_ratio.student(0.025, n - 1) * stdev(values) / math.sqrt(n)
    low, high = mean - half, mean + half
    return (max(0.0, low), min(1.0, high)) if rate else (low, high)


def _report_line(state: TrainState) -> str:
    winner = state.winner
    if winner is None or not winner.repeats or winner.quality_mean is None:
        return "The recipe was chosen by one seed: there was no time to repeat finalists."
    seeds = 1 + len(winner.repeats)
    text = f"The recipe's quality on validation over {seeds} seeds: mean {winner.quality_mean:.4g}"
    if winner.quality_interval is not None:
        low, high = winner.quality_interval
        text += f" (95 % interval {low:.4g} to {high:.4g})"
    others = [t for t in state.trials if t.repeats and t.number != winner.number]
    beaten = [f"{t.quality_mean:.4g}" for t in others if t.quality_mean is not None]
    return text + (f"; the other finalists' means: {', '.join(beaten)}." if beaten else ".")
