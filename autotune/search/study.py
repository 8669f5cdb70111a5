"""Constrained search by Optuna: propose, prune, learn.  The only file that imports it.

Optuna 5.0 is used as follows (each found by measurement, see docs/decisions.md):

- the sampler is seeded from (seed, number of trials) before every `ask`, so that a resumed
  study goes on as the uninterrupted one would have;
- every constraint is set on every trial, in sorted order, last thing before `tell`;
- a configuration that fails is reported as complete with a finite worst value and violated
  constraints: the sampler ignores FAIL;
- feasibility is computed by us, not by `best_trials`;
- halving is ours (`halving`): Optuna's has no groups and no pauses.  A paused trial is reported as
  pruned; once resumed, its result is reported as one more trial (`add`).
"""

import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autotune.records.plan import Value
from autotune.records.task import Dim
from autotune.search.space import Space

WORST = 1e9
_BLIND_EVERY = 3
Initial = tuple[Mapping[str, Value], str]
"""A configuration to try before the sampler's own, and who proposed it."""


class Proposal(NamedTuple):
    """``number`` is the study's trial number; ``why`` says who proposed it."""

    number: int
    values: dict[str, Value]
    why: str


class Study:
    """One study over one space.  Values are minimised.

    Args:
        space: what to search; its hash becomes part of the study's name.
        seed: the same seed gives the same proposals from the same results.
        constraints: names of all constraints; each is reported for every trial (<= 0 is feasible).
        journal: file to keep the study in, readable by optuna-dashboard.
    """

    def __init__(
        self,
        space: Space,
        *,
        seed: int,
        constraints: tuple[str, ...],
        journal: Path | None = None,
        startup: int = 8,
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        self.space = space
        self._seed = seed
        self._names = tuple(sorted(constraints))
        self._startup = startup
        self._journal = journal
        self._study = optuna.create_study(
            study_name=f"{space.name}-{space.hash}",
            storage=_storage(optuna, journal),
            sampler=self._sampler(0),
            pruner=optuna.pruners.NopPruner(),
            direction="minimize",
        )
        self._open: dict[int, Any] = {}
        self._waiting: deque[tuple[dict[str, Value], str]] = deque()
        self._asked = 0

    def blind(self) -> "Study":
        """A second study of the same space that sees none of this one's trials."""
        return Study(
            Space(name=f"{self.space.name}-blind", nodes=self.space.nodes),
            seed=self._seed + 1,
            constraints=self._names,
            journal=self._journal,
            startup=self._startup,
        )

    def _sampler(self, asked: int) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._optuna.samplers.TPESampler(
                seed=(self._seed * 1_000_003 + asked) % 2**32,
                n_startup_trials=self._startup,
                multivariate=True,
                group=True,
                constant_liar=True,
            )

    def enqueue(self, values: Mapping[str, Value], why: str) -> None:
        """Put a configuration in front of the sampler's own."""
        self._waiting.append((dict(values), why))

    @property
    def waiting(self) -> int:
        """Configurations that stand in front of the sampler's own."""
        return len(self._waiting)

    def ask(self) -> Proposal:
        """The next configuration."""
        self._study.sampler = self._sampler(self._asked)
        self._asked += 1
        if self._waiting:
            values, why = self._waiting.popleft()
            self._study.enqueue_trial(values, user_attrs={"why": why})
        return self._ask()

    def add(self, values: Mapping[str, Value], why: str) -> int:
        """Open a trial of known ``values`` whose result is reported next; returns its number."""
        self._study.enqueue_trial(dict(values), user_attrs={"why": why})
        return self._ask().number

    def _ask(self) -> Proposal:
        trial = self._study.ask()
        values = self.space.sample(lambda dim: _suggest(trial, dim))
        why = str(trial.user_attrs.get("why", "sampler"))
        self._open[trial.number] = trial
        return Proposal(trial.number, values, why)

    def report(self, number: int, step: int, value: float) -> None:
        """An intermediate value."""
        self._open[number].report(value, step)

    def tell(
        self,
        number: int,
        value: float | None,
        constraints: Mapping[str, float],
        *,
        pruned: bool = False,
    ) -> None:
        """The end of a trial.  ``value`` None is a configuration that failed."""
        trial = self._open.pop(number)
        failed = value is None
        for name in self._names:
            missing = 1.0 if failed else 0.0
            trial.set_constraint(name, float(constraints.get(name, missing)))
        if pruned:
            self._study.tell(trial, state=self._optuna.trial.TrialState.PRUNED)
        else:
            self._study.tell(trial, WORST if value is None else float(value))

    def abandon(self, number: int) -> None:
        """Close a trial that never ran (out of time)."""
        trial = self._open.pop(number)
        self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)


class MixedStudy:
    """A study with initial configurations, and beside it a blind one that never sees them.

    A sampler that saw configurations of an earlier run stays near them, right or wrong: with
    ``blind``, every third proposal after the initial ones comes from a study that is given only
    what it proposed itself.
    """

    def __init__(self, study: Study, first: Sequence[Initial] = (), *, blind: bool = False) -> None:
        self._study, self._blind = study, study.blind() if blind else None
        self._first = len(first)
        self._asked = 0
        self._open: list[tuple[Study, int]] = []
        for values, why in first:
            study.enqueue(values, why)

    def enqueue(self, values: Mapping[str, Value], why: str) -> None:
        self._study.enqueue(values, why)

    @property
    def waiting(self) -> int:
        """Configurations that stand in front of the study's sampler's own."""
        return self._study.waiting

    def ask(self) -> Proposal:
        """The next configuration."""
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
        """Open a trial of known ``values`` whose result is reported next; returns its number."""
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


def _suggest(trial: Any, dim: Dim) -> Value:
    value: Value
    if dim.kind == "choice":
        value = trial.suggest_categorical(dim.name, list(dim.choices))
    elif dim.kind == "int":
        value = trial.suggest_int(dim.name, int(dim.low or 0), int(dim.high or 0), log=dim.log)
    else:
        value = trial.suggest_float(dim.name, dim.low, dim.high, log=dim.log, step=dim.step)
    return value


def _storage(optuna: Any, journal: Path | None) -> Any:
    if journal is None:
        return None
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(journal)))
