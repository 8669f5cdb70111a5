"""Start from the ranking of an earlier report of a like model on a like machine.

    --like DIR | auto --> Donor: its best recipes     --trained anew, first---> the train search
                                 its best deployments --measured anew, first--> the deploy search
                          every third proposal of each: a study that has never seen them

An earlier ranking can trap a search: where donor and model rank differently, a sampler that saw
the donor's plans stays among them.  So they are tried anew (nothing of the old figures is
believed), and a share of the trials is kept blind.  A recipe keeps what this space has of it: the
nearest batch and learning rate; its split is this machine's fastest.

What this does not know: quality.  What was accurate for another model need not be for this one.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from autotune.context import RunContext
from autotune.deployment import ranking, search_space
from autotune.errors import FormatError, UsageError
from autotune.records.base import Record
from autotune.records.hardware import Profile
from autotune.records.plan import Deployment, Recipe, Value
from autotune.records.report import Report, TrainTrial
from autotune.records.task import Traits
from autotune.report import run_folder
from autotune.search.space import Space, canonical
from autotune.search.study import Proposal, Study
from autotune.training import search_space as training_search_space

AUTO = "auto"
WHY = "an earlier report"
_PLANS = 4
_RECIPES = 3
_BLIND_EVERY = 3
_LIKE_MODEL = 1.2
"""Sum of the logarithms of what differs, at most: 1.8x in size and in work, say."""
_LIKE_MACHINE = 0.5
"""Logarithm of the anchors' ratio, at most: 1.6x."""


Part = Literal["recipes", "deployments"]


class Donor(Record, frozen=True, kw_only=True):
    """Where a search starts from: the report's folder, recipes and deployments, best first."""

    folder: str
    model: str
    deployments: tuple[Deployment, ...]
    recipes: tuple[Recipe, ...] = ()


def model_distance(one: Traits, other: Traits) -> float:
    """0 for alike models: logarithms of size and work, and the share of unlike layers."""
    pairs = (
        (one.parameters, other.parameters),
        (one.flops_per_sample, other.flops_per_sample),
    )
    apart = sum(abs(math.log((a + 1) / (b + 1))) for a, b in pairs)
    kinds = set(one.module_types) | set(other.module_types)
    common = sum(min(one.module_types.get(k, 0), other.module_types.get(k, 0)) for k in kinds)
    most = max(sum(one.module_types.values()), sum(other.module_types.values()), 1)
    return apart + (1 - common / most if kinds else 0.0)


def machine_distance(one: Profile, other: Profile) -> float:
    """0 for alike machines, infinite for other instructions, cores or devices."""
    same = (
        one.cpu.architecture == other.cpu.architecture
        and one.cpu.isa == other.cpu.isa
        and one.cpu.usable_cores == other.cpu.usable_cores
        and [g.name for g in one.gpus] == [g.name for g in other.gpus]
    )
    if not same:
        return math.inf
    ratios = [
        abs(math.log(leaf.value / found.value))
        for name, leaf in one.figures.items()
        if leaf.value and (found := other.figures.get(name)) is not None and found.value
    ]
    return sorted(ratios)[len(ratios) // 2] if ratios else 0.0


def find(run: RunContext, part: Part) -> Donor | None:
    """The donor that ``--like`` names, where it has this part; with ``auto`` the nearest that has
    it among this run's neighbours.

    Raises:
        UsageError: the folder that was named holds no report with a plan.
    """
    like = run.effort.like
    if like is None:
        return None
    first = part == "recipes" or run.survey.task.pretrained
    if like != AUTO:
        given = _named(run, Path(like), say=first)
        if not getattr(given, part):
            run.listener.note(f"--like {like}: its report holds no {part} to start from")
            return None
        return given
    near: list[tuple[float, Donor]] = []
    here = run.journal.parent if run.journal is not None else None
    for file in sorted((here.parent if here else Path("reports")).glob("*/report.json")):
        if here is not None and file.parent.samefile(here):
            continue
        try:
            report = run_folder.load_report(file)
        except (FormatError, UsageError):
            continue
        model = model_distance(run.survey.traits, report.survey.traits)
        machine = machine_distance(run.profile, report.profile)
        donor = _donor(file.parent, report)
        has = donor is not None and getattr(donor, part)
        if donor is not None and has and model <= _LIKE_MODEL and machine <= _LIKE_MACHINE:
            near.append((model + machine, donor))
    if not near and first:
        run.listener.note("--like auto: no report of a like model on a like machine was found")
    return min(near, key=lambda pair: pair[0])[1] if near else None


def check(run: RunContext) -> None:
    """Refuse a ``--like`` that names no usable report, before anything is spent on it.

    Raises:
        UsageError: the folder holds no report with a plan.
    """
    if run.effort.like not in (None, AUTO):
        _loaded(Path(str(run.effort.like)))


def _named(run: RunContext, folder: Path, *, say: bool) -> Donor:
    report, donor = _loaded(folder)
    if not say:
        return donor
    machine = machine_distance(run.profile, report.profile)
    model = model_distance(run.survey.traits, report.survey.traits)
    if machine > _LIKE_MACHINE:
        run.listener.note(f"--like {folder}: it was made on another kind of machine than this")
    if model > _LIKE_MODEL:
        run.listener.note(f"--like {folder}: its model is unlike this one")
    return donor


def _loaded(folder: Path) -> tuple[Report, Donor]:
    report = run_folder.load_report(folder)
    donor = _donor(folder, report)
    if donor is None:
        raise UsageError(
            f"--like {folder}: its report holds no trained recipe and no measured deployment; "
            "give a finished one"
        )
    return report, donor


def _donor(folder: Path, report: Report) -> Donor | None:
    goal, higher = report.budget.resolved_goal(), report.survey.task.higher_is_better
    ranked = [t.deployment for t in ranking.order(report.deploy_trials, goal, higher)]
    best = [report.chosen.plan.deployment] if report.chosen is not None else []
    unique = {canonical(d): d for d in [*best, *ranked]}
    known = _recipes(report)
    if not unique and not known:
        return None
    plans = tuple(unique.values())[:_PLANS]
    name = report.survey.task.name
    return Donor(folder=str(folder), model=name, deployments=plans, recipes=known)


def _recipes(report: Report) -> tuple[Recipe, ...]:
    """The recipe that was chosen, then those of the best trials, within every budget first."""
    sign = -1.0 if report.survey.task.higher_is_better else 1.0

    def worse(trial: TrainTrial) -> tuple[float, float]:
        broken = sum(max(0.0, value) for value in trial.constraints.values())
        return broken, sign * (trial.quality or 0.0)

    done = [t for t in report.train_trials if t.state == "complete" and t.quality is not None]
    best = [report.chosen.plan.recipe] if report.chosen is not None else []
    found = [*best, *(t.recipe for t in sorted(done, key=worse))]
    unique = {canonical(r): r for r in found if r is not None}
    return tuple(unique.values())[:_RECIPES]


def training(
    run: RunContext, study: Study, usual: Sequence[tuple[Mapping[str, Value], str]]
) -> "MixedStudy":
    """The train search's study with what is worth trying first: the donor's recipes, as this space
    has them, then the usual seeds.
    """
    donor = find(run, "recipes")
    near = (
        [training_search_space.values_near(r, study.space) for r in donor.recipes] if donor else []
    )
    given = [values for i, values in enumerate(near) if values and values not in near[:i]]
    if donor is not None:
        run.listener.note(
            f"Starts from {len(given)} recipes of {donor.folder} ({donor.model}), trained anew; "
            "every third of the sampler's trials has not seen them."
        )
    first = [*((v, WHY) for v in given), *((v, why) for v, why in usual if v not in given)]
    guided = MixedStudy(study, study.apart() if donor is not None else None, len(first))
    for values, why in first:
        guided.enqueue(values, why)
    return guided


def seeds(
    run: RunContext,
    donor: Donor | None,
    space: Space,
    usual: Sequence[tuple[Mapping[str, Value], str]],
) -> list[tuple[Mapping[str, Value], str]]:
    """What to enqueue, and why: the donor's plans that this space has, then the usual seeds."""
    given: list[Mapping[str, Value]] = []
    if donor is not None:
        options = run.survey.options
        known = (search_space.values_of(d, space, options) for d in donor.deployments)
        given = [values for values in known if values is not None]
        run.listener.note(
            f"Starts from {len(given)} plans of {donor.folder} ({donor.model}), "
            f"measured anew; every third of the sampler's trials has not seen them."
        )
    out: list[tuple[Mapping[str, Value], str]] = [(v, WHY) for v in given]
    return out + [(values, why) for values, why in usual if values not in given]


class MixedStudy:
    """A study with a donor's plans in it, and beside it one that never sees them.

    Without ``blind`` it is the study alone.
    """

    def __init__(self, study: Study, blind: Study | None, first: int) -> None:
        self._study, self._blind = study, blind
        self._first = first
        self._asked = 0
        self._open: list[tuple[Study, int]] = []

    def enqueue(self, values: Mapping[str, Value], why: str) -> None:
        self._study.enqueue(values, why)

    @property
    def waiting(self) -> int:
        """Configurations that stand in front of the study's sampler's own."""
        return self._study.waiting

    def ask(self) -> Proposal:
        """The next configuration; after the ``first`` ones every third is blind."""
        self._asked += 1
        late = self._asked - self._first
        blind = self._blind is not None and late > 0 and late % _BLIND_EVERY == 0
        study = self._blind if blind and self._blind is not None else self._study
        number, values, why = study.ask()
        self._open.append((study, number))
        return Proposal(len(self._open) - 1, values, "blind sampler" if blind else why)

    @property
    def space(self) -> Space:
        return self._study.space

    def add(self, values: Mapping[str, Value], why: str) -> int:
        """Open a trial of known ``values``, to be told at once; returns its number."""
        self._open.append((self._study, self._study.add(values, why)))
        return len(self._open) - 1

    def report(self, number: int, step: int, value: float) -> None:
        study, own = self._open[number]
        study.report(own, step, value)

    def tell(
        self,
        number: int,
        value: float | None,
        constraints: Mapping[str, float],
        *,
        pruned: bool = False,
    ) -> None:
        study, own = self._open[number]
        study.tell(own, value, constraints, pruned=pruned)

    def abandon(self, number: int) -> None:
        study, own = self._open[number]
        study.abandon(own)
