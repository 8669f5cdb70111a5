"""The user's own hyperparameters: ``space(trial)``, written as one writes it for Optuna.

    def space(trial):
        return {"width": trial.suggest_int("width", 16, 128, log=True)}

    Inspect:    space(FixedTrial({})), once per choice -> dimensions and the choices they depend on
    every job:  space(FixedTrial(values)) -> what make_model(**params) and train() get

Optuna itself is not used: the search has the dimensions that were found.  A dimension that only
some choices of a categorical lead to is conditional on it; one that depends on a number (``if
width > 64``) cannot be seen, and its default is used.
"""

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autotune.errors import ContractError
from autotune.records.plan import Value
from autotune.records.task import Dim, Node
from autotune.worker.user_file.errors import contract_error, guard

_MOST_RUNS = 200
_FIX = 'def space(trial):\n    return {"width": trial.suggest_int("width", 16, 128)}'
_CALL = "space(trial)"
WIDTH = "width"
"""The argument of ``make_model`` that makes it narrower, where its default is 1.0."""


class FixedTrial:
    """Stands for Optuna's trial: suggests given values, else defaults; records what was asked."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = values
        self.asked: dict[str, Dim] = {}
        self.values: dict[str, Value] = {}

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """As Optuna's."""
        dim = Dim(name=name, kind="float", low=float(low), high=float(high), log=log, step=step)
        return float(self._answer(dim))

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """As Optuna's."""
        grid = float(step) if step != 1 else None
        dim = Dim(name=name, kind="int", low=float(low), high=float(high), log=log, step=grid)
        return int(self._answer(dim))

    def suggest_categorical(self, name: str, choices: Sequence[Value]) -> Value:
        """As Optuna's; choices are numbers, texts, True or False."""
        return self._answer(Dim(name=name, kind="choice", choices=tuple(choices)))

    def _answer(self, dim: Dim) -> Value:
        _check(dim)
        if self.asked.setdefault(dim.name, dim) != dim:
            raise ValueError(f"{dim.name} is suggested twice, with different ranges")
        self.values[dim.name] = self._values.get(dim.name, default(dim))
        return self.values[dim.name]


def _check(dim: Dim) -> None:
    if dim.kind == "choice":
        odd = [c for c in dim.choices if not isinstance(c, int | float | str)]
        if not dim.choices or odd:
            raise ValueError(
                f"{dim.name}: the choices {list(dim.choices)!r} must be numbers, texts, "
                "True or False, and at least one"
            )
        return
    assert dim.low is not None
    assert dim.high is not None
    if not dim.low <= dim.high:
        raise ValueError(
            f"{dim.name}: {dim.low:g} to {dim.high:g} is not a range: give low <= high"
        )
    if dim.log and (dim.low <= 0 or dim.step):
        raise ValueError(f"{dim.name}: log=True needs low > 0 and no step")


def default(dim: Dim) -> Value:
    """The first choice, or the middle of the range (the geometric one of a log range)."""
    if dim.kind == "choice":
        return dim.choices[0]
    assert dim.low is not None
    assert dim.high is not None
    middle = (dim.low * dim.high) ** 0.5 if dim.log else (dim.low + dim.high) / 2
    if dim.step:
        middle = dim.low + round((middle - dim.low) / dim.step) * dim.step
    return round(middle) if dim.kind == "int" else float(middle)


class UserSpace:
    """The user's ``space``, with the functions that get its values.

    Args:
        names: what the user's file binds.
        where: its name, for messages.
        path: the file as tracebacks name it.
    """

    def __init__(self, names: Mapping[str, Any], where: str, path: str | None) -> None:
        found = names.get("space")
        if found is not None and not callable(found):
            raise contract_error(
                where,
                "space must be a function",
                found=f"space is a {type(found).__name__}",
                fix=_FIX,
            )
        self._space: Callable[[Any], Any] | None = found
        self._make, self._train = names.get("make_model"), names.get("train")
        self._where, self._path = where, path

    def params(self, values: Mapping[str, Value]) -> dict[str, Any]:
        """What ``make_model`` and ``train`` get for sampled values; nothing for no values.

        Raises:
            ContractError: the hook raises, or returns what cannot be written into a plan.
        """
        narrow = {n: v for n, v in values.items() if n == WIDTH and self._offers_width()}
        rest = {n: v for n, v in values.items() if n not in narrow}
        made = self._run(rest)[1] if self._space is not None and rest else rest
        return {**made, **narrow}

    def fields(self) -> dict[str, Any]:
        """The fields of `TaskInfo` that the hook fills."""
        found = self.nodes()
        own = any(node.dim.name == WIDTH for node in found)
        width = 1.0 if self._offers_width() and not own else None
        return {"space": found, "params": self.defaults(found), "width": width}

    def _offers_width(self) -> bool:
        """Whether it is ``make_model(width=1.0)``: an int or another default is a size of its own,
        not a factor.
        """
        if not callable(self._make):
            return False
        found = inspect.signature(self._make).parameters.get(WIDTH)
        return found is not None and isinstance(found.default, float) and found.default == 1.0

    def nodes(self) -> tuple[Node, ...]:
        """The dimensions, a conditional one after the choice that it depends on.

        Raises:
            ContractError: the hook breaks its contract, or leads to too many choices.
        """
        if self._space is None:
            return ()
        first = self._run({})
        self._check_taken(first[1])
        seen = dict(first[0])
        found: dict[str, Node] = {name: Node(dim=dim) for name, dim in seen.items()}
        way: dict[str, Value] = {}
        todo = [(dim, way, first[0]) for dim in seen.values() if dim.kind == "choice"]
        runs = 0
        while todo:
            dim, way, base = todo.pop(0)
            for choice in dim.choices[1:]:
                runs += 1
                if runs > _MOST_RUNS:
                    raise self._broken(f"more than {_MOST_RUNS} choices to follow")
                there: dict[str, Value] = {**way, dim.name: choice}
                asked = self._run(there)[0]
                for new in _note(found, dim, choice, base, asked):
                    if new.kind == "choice":
                        todo.append((new, there, asked))
        return tuple(found.values())

    def defaults(self, nodes: tuple[Node, ...]) -> dict[str, Value]:
        """What the baseline's model has: ``make_model``'s own defaults, given as values where
        its parameters are the dimensions; ours only where it has none.
        """
        if not nodes or not callable(self._make):
            return {}
        takes = inspect.signature(self._make).parameters
        own = {n: p.default for n, p in takes.items() if p.default is not p.empty}
        free = [
            name
            for name, p in takes.items()
            if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        ]
        out: dict[str, Value] = {}
        for node in nodes:
            name = node.dim.name
            if node.active(out):
                known = own.get(name)
                if isinstance(known, int | float | str):
                    out[name] = known
                elif free:
                    out[name] = default(node.dim)
                else:
                    return {}  # make_model() has defaults of its own
        return out

    def _run(self, values: Mapping[str, Value]) -> tuple[dict[str, Dim], dict[str, Any]]:
        assert self._space is not None
        trial = FixedTrial(values)
        with guard(self._where, _CALL, self._path):
            made = self._space(trial)
        made = dict(trial.values) if made is None else made
        if not isinstance(made, dict) or not all(isinstance(name, str) for name in made):
            raise self._broken(f"it returned a {type(made).__name__}, not a dict by name")
        try:
            plain = ast.literal_eval(repr(made)) == made
        except (ValueError, SyntaxError):
            plain = False
        if not plain:
            raise self._broken(f"it returned {made!r}: only plain values can stand in a plan")
        return trial.asked, made

    def _check_taken(self, params: Mapping[str, Any]) -> None:
        """Refuse a value that ``make_model`` does not take."""
        if callable(self._train) or not callable(self._make):
            return
        takes = inspect.signature(self._make).parameters
        if any(p.kind == p.VAR_KEYWORD for p in takes.values()):
            return
        lost = [name for name in params if name not in takes]
        if lost:
            raise contract_error(
                self._where,
                f"{_CALL} returns {', '.join(lost)}, which make_model() does not take",
                found=f"make_model({', '.join(takes)})",
                fix=f"def make_model({lost[0]}=...):\n    ...",
            )

    def _broken(self, what: str) -> ContractError:
        return contract_error(
            self._where, f"{_CALL} must return a dict of values", found=what, fix=_FIX
        )


def _note(
    found: dict[str, Node],
    dim: Dim,
    choice: Value,
    base: Mapping[str, Dim],
    asked: Mapping[str, Dim],
) -> list[Dim]:
    """Add what one choice leads to; returns the dimensions never seen before."""
    new = []
    for name, one in asked.items():
        if name not in found:
            found[name] = Node(dim=one, parent=dim.name, values=(choice,))
            new.append(one)
        elif found[name].dim != one:
            raise ContractError(f"space(trial): {name} must have the same range each time")
        elif found[name].parent == dim.name and choice not in found[name].values:
            found[name] = Node(dim=one, parent=dim.name, values=(*found[name].values, choice))
    for name in base:
        node = found[name]
        if name not in asked and node.parent is None:
            others = tuple(c for c in dim.choices if c != choice)
            found[name] = Node(dim=node.dim, parent=dim.name, values=others)
        elif name not in asked and node.parent == dim.name:
            left = tuple(c for c in node.values if c != choice)
            found[name] = Node(dim=node.dim, parent=dim.name, values=left)
    return new
