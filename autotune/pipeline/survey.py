"""The survey: what is there, what is legal, what cannot be measured, before the first trial."""

import math

from autotune import patterns
from autotune.bridge import Bridge
from autotune.context import INSPECT_S, Listener, RunContext, ask, thread_counts
from autotune.deployment import search_space
from autotune.errors import UsageError
from autotune.hardware import profiles
from autotune.records import job as jobs
from autotune.records.budget import Budget, Effort
from autotune.records.hardware import Profile
from autotune.records.plan import Recipe
from autotune.records.task import Survey, TaskSpec
from autotune.search import space
from autotune.stats import non_inferiority
from autotune.training import search_space as training_search_space


def survey(
    bridge: Bridge,
    spec: TaskSpec,
    budget: Budget,
    effort: Effort,
    saved: Profile | None,
    listener: Listener,
) -> RunContext:
    """Inspect the task, profile the machine, ask the plug-ins; the run that follows from it."""
    listener.phase("survey", 20.0)
    found = ask(bridge, jobs.Inspect(task=spec, batch_size=budget.batch or 1), INSPECT_S)
    bridge.preload(found.imports)
    sources = ask(bridge, jobs.Sources(), 30.0)
    measured = any(s.label.startswith("measured") for s in sources.sources)
    profile = _profile(bridge, saved, effort.device, listener, "auto" if measured else None)
    context = jobs.Context(info=found.info, traits=found.traits, profile=profile)
    menu = ask(bridge, jobs.Menu(context=context), 60.0)
    options = space.restrict(menu.options, effort)
    least = non_inferiority.smallest_certifiable_drop(found.info.test_rows)
    known = Survey(
        task=found.info,
        traits=found.traits,
        options=options,
        certifiable_drop=least if found.info.binary else None,
    )
    run = RunContext(bridge, spec, budget, effort, listener, profile, known, sources.sources)
    run.evaluation_s = found.evaluation_s or 0.0
    _check_restrictions(run)
    run.timed("survey", 0.0)
    _say_limits(run)
    return run


def of_recipe(run: RunContext, recipe: Recipe) -> RunContext:
    """The run with the traits and options of the model that the recipe makes, where the user's
    hyperparameters make it another than the one that was surveyed.
    """
    if recipe.params == run.survey.task.params:
        return run
    found = ask(run.bridge, jobs.Inspect(task=run.task(recipe)), INSPECT_S)
    context = jobs.Context(info=found.info, traits=found.traits, profile=run.profile)
    menu = ask(run.bridge, jobs.Menu(context=context), 60.0)
    judged = {o.name: o for o in run.survey.options if o.kind == "step"}
    options = tuple(
        judged.get(o.name, o) if o.kind == "step" else o
        for o in space.restrict(menu.options, run.effort)
    )
    return run.with_survey(traits=found.traits, options=options)


def _profile(
    bridge: Bridge, saved: Profile | None, device: str, listener: Listener, meter: str | None
) -> Profile:
    """Probe the machine (its power too, where there is a meter), or check a saved profile's
    anchors.
    """
    if saved is not None and saved.cpu.usable_cores is None:
        raise UsageError(
            f"the profile {saved.name} is the datasheet of a device without a host: nothing can "
            "run on it; give one that `autotune profile` made on this machine"
        )
    job = jobs.Probe(anchors_only=saved is not None, device=device, meter=None if saved else meter)
    done = ask(bridge, job, 60.0)
    if saved is None:
        return done.profile
    for warning in anchor_warnings(saved, done.profile):
        listener.note(warning)
    return saved


def anchor_warnings(saved: Profile, now: Profile) -> tuple[str, ...]:
    """What no longer fits: other hardware, other software, an anchor that is far off."""
    return profiles.fit(saved, now).reasons


def _check_restrictions(run: RunContext) -> None:
    """What the user restricts exists, before anything is spent on it."""
    effort, cores = run.effort, max(1, math.floor(run.profile.cpu.cores))
    if effort.threads is not None and not 1 <= effort.threads <= cores:
        raise UsageError(f"--threads {effort.threads}: this process may use {cores} cores")
    names = run.survey.task.module_names
    for pattern in effort.keep_fp32:
        if not any(patterns.matches(name, [pattern]) for name in names):
            some = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
            raise UsageError(f"--keep-fp32 {pattern!r}: no module is called so; there are: {some}")
    counts = thread_counts(run.profile, effort)
    spaces = [search_space.deploy_space(run.survey, counts, (1, 4), effort)]
    if not run.survey.task.pretrained:
        spaces.append(training_search_space.train_space(run.survey, effort))
    space.check_fixed(effort.fix, tuple(spaces))


def _say_limits(run: RunContext) -> None:
    """Report what cannot be measured or certified before the search, with the remedy."""
    budget, info = run.budget, run.survey.task
    for warning in (*info.warnings, *run.profile.warnings):
        run.listener.note(warning)
    if budget.energy is not None and run.meter is None:
        why = "; ".join(s.reason or "" for s in run.sources if s.reason)
        remedy = "; ".join(dict.fromkeys(s.remedy for s in run.sources if s.remedy))
        end = "" if budget.accept_modelled_energy else " This run will end with exit 4."
        text = f"Energy cannot be measured here ({why}). {remedy}.{end}"
        if run.effort.require_measured:
            raise UsageError(text)
        run.listener.note(text)
    least = run.survey.certifiable_drop
    if least is not None:
        allowed = run.max_drop or 0.01
        rows = info.test_rows
        text = f"{rows} test rows: the smallest drop of quality they can certify is {least:.2%}."
        if least > allowed:
            needed = non_inferiority.rows_needed(allowed)
            text += f" --max-drop {allowed:g} would need {needed} rows: quality will be UNDECIDED."
        run.listener.note(text)
