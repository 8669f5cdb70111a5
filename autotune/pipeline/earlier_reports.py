"""What ``--like`` names: earlier reports, as configurations to start a search from."""

from pathlib import Path

from autotune.context import RunContext
from autotune.deployment import ranking
from autotune.deployment.goal import goal_of
from autotune.errors import FormatError, UsageError
from autotune.records.plan import Recipe
from autotune.records.report import Report, TrainTrial
from autotune.report import run_folder
from autotune.search import warm_start
from autotune.search.space import canonical
from autotune.search.warm_start import Part, WarmStart

AUTO = "auto"
_DEPLOYMENTS, _RECIPES = 4, 3


def load(like: str | None, folder: Path) -> tuple[WarmStart, ...]:
    """The report that ``--like`` names, or with ``auto`` those beside this run's ``folder``.

    Raises:
        UsageError: the folder that was named holds no report with a plan.
    """
    if like is None:
        return ()
    if like != AUTO:
        named = _warm_start(Path(like), run_folder.load_report(Path(like)))
        if named is None:
            raise UsageError(
                f"--like {like}: its report holds no trained recipe and no measured deployment; "
                "give a finished one"
            )
        return (named,)
    found: list[WarmStart] = []
    for file in sorted(folder.parent.glob("*/report.json")):
        if file.parent.samefile(folder):
            continue
        try:
            one = _warm_start(file.parent, run_folder.load_report(file))
        except (FormatError, UsageError):
            continue
        found += [one] if one is not None else []
    return tuple(found)


def choose(run: RunContext, earlier: tuple[WarmStart, ...], part: Part) -> WarmStart | None:
    """The report that was named, where it has this part; with ``auto`` the nearest that has it."""
    like, note = run.effort.like, run.listener.note
    if like is None:
        return None
    first = part == "recipes" or run.survey.task.pretrained
    if like == AUTO:
        found = warm_start.nearest(earlier, run.survey.traits, run.profile, part)
        if found is None and first:
            note("--like auto: no report of a like model on a like machine was found")
        return found
    (named,) = earlier
    if first and not named.similar_machine(run.profile):
        note(f"--like {like}: it was made on another kind of machine than this")
    if first and not named.similar_model(run.survey.traits):
        note(f"--like {like}: its model is unlike this one")
    if getattr(named, part):
        return named
    note(f"--like {like}: its report holds no {part} to start from")
    return None


def _warm_start(folder: Path, report: Report) -> WarmStart | None:
    """A report's best configurations; None where it has none."""
    goal = goal_of(report.budget, report.survey.task.higher_is_better)
    ranked = [t.deployment for t in ranking.order(report.deploy_trials, goal)]
    best = [report.chosen.plan.deployment] if report.chosen is not None else []
    unique = {canonical(d): d for d in [*best, *ranked]}
    recipes = _recipes(report)
    if not unique and not recipes:
        return None
    return WarmStart(
        folder=str(folder),
        model=report.survey.task.name,
        traits=report.survey.traits,
        profile=report.profile,
        deployments=tuple(unique.values())[:_DEPLOYMENTS],
        recipes=recipes,
    )


def _recipes(report: Report) -> tuple[Recipe, ...]:
    """The chosen recipe, then those of the best trials: within every budget before beyond one."""
    sign = -1.0 if report.survey.task.higher_is_better else 1.0

    def worse(trial: TrainTrial) -> tuple[float, float]:
        broken = sum(max(0.0, value) for value in trial.constraints.values())
        return broken, sign * (trial.quality or 0.0)

    done = [t for t in report.train_trials if t.state == "complete" and t.quality is not None]
    best = [report.chosen.plan.recipe] if report.chosen is not None else []
    found = [*best, *(t.recipe for t in sorted(done, key=worse))]
    unique = {canonical(r): r for r in found if r is not None}
    return tuple(unique.values())[:_RECIPES]
