"""Search spaces as plain data: dimensions, conditions, restrictions, neighbours.

    Survey --training.search_space / deployment.search_space--> Space --sample--> values

A `Space` is a list of nodes, some of which are active only where an earlier one has certain values.
Its hash is part of the study's name, so that different ranges never mix in one study.
"""

import json
import random
from collections.abc import Callable, Mapping
from hashlib import sha256

import msgspec

from autotune.errors import UsageError
from autotune.records import codec
from autotune.records.base import Record
from autotune.records.budget import Effort
from autotune.records.plan import Value
from autotune.records.task import Dim, Node, Option

Values = Mapping[str, Value]
LR = "lr_"
"""Prefix of learning rates' names; each family of optimizers has its own range."""


class Space(Record, frozen=True, kw_only=True):
    """An ordered, conditional search space."""

    name: str
    nodes: tuple[Node, ...]

    @property
    def hash(self) -> str:
        return sha256(codec.encode(self)).hexdigest()[:12]

    def sample(self, suggest: Callable[[Dim], Value]) -> dict[str, Value]:
        """Values for every active node, suggested in order."""
        chosen: dict[str, Value] = {}
        for node in self.nodes:
            if node.active(chosen):
                chosen[node.dim.name] = suggest(node.dim)
        return chosen


def choice(name: str, choices: tuple[Value, ...]) -> Dim:
    """A categorical dimension."""
    return Dim(name=name, kind="choice", choices=choices)


def restrict(options: tuple[Option, ...], effort: Effort) -> tuple[Option, ...]:
    """Mark the options that ``--only`` and ``--without`` exclude.

    ``--only runtime=eager`` keeps, of that kind, what is named (several ``--only`` of one kind
    add up); ``--without NAME`` drops.  A name may stand with or without its kind.

    Raises:
        UsageError: there is no such kind or name; the message lists those there are.
    """
    known = {(o.kind, o.name) for o in options}
    only = [pair for text in effort.only for pair in _named(text, known, "--only")]
    without = {pair for text in effort.without for pair in _named(text, known, "--without")}
    kinds = {kind for kind, _ in only}
    out = []
    for option in options:
        pair = (option.kind, option.name)
        excluded = pair in without or (option.kind in kinds and pair not in only)
        out.append(_exclude(option) if excluded else option)
    return tuple(out)


def _exclude(option: Option) -> Option:
    return msgspec.structs.replace(option, available=False, excluded_by_user=True)


def _named(text: str, known: set[tuple[str, str]], flag: str) -> list[tuple[str, str]]:
    pairs = []
    kind, given, rest = text.partition("=")
    for name in (rest if given else text).split(","):
        found = [p for p in known if p[1] == name.strip() and (not given or p[0] == kind)]
        if not found:
            names = sorted(f"{k}={n}" for k, n in known if not given or k == kind)
            names = names or sorted(f"{k}={n}" for k, n in known)
            raise UsageError(f"{flag} {text}: no such choice; there are: {', '.join(names)}")
        pairs += found
    return pairs


def optimizers(options: tuple[Option, ...]) -> tuple[str, ...]:
    """Names of the available optimizers.

    Raises:
        UsageError: there is none; the message gives the reason of each refused one.
    """
    found = [o for o in options if o.kind == "optimizer"]
    left = tuple(o.name for o in found if o.available)
    if not left:
        refused = [f"; {o.name} is refused: {o.reason}" for o in found if o.reason]
        raise UsageError(f"--only and --without leave no optimizer{''.join(refused)}")
    return left


def inside(dim: Dim, value: Value) -> bool:
    """Whether the value lies in the dimension's choices or range."""
    if dim.kind == "choice":
        return value in dim.choices
    assert dim.low is not None
    assert dim.high is not None
    return not isinstance(value, str) and dim.low <= value <= dim.high


def fix(space: Space, given: tuple[str, ...]) -> Space:
    """The space with each ``name=value`` of ``given`` fixed where it has that dimension.

    ``lr`` and a step's bare parameter name (``macs_kept``) mean all dimensions whose names end so;
    a value must lie in the range of one of them.

    Raises:
        UsageError: a value outside its dimension's range; the message gives the range.
    """
    nodes = list(space.nodes)
    for text in given:
        name, _, value = (part.strip() for part in text.partition("="))
        found = [i for i, node in enumerate(nodes) if named(node.dim, name)]
        if not found:
            continue
        parsed = _parsed(_widest([nodes[i].dim for i in found]), value, text)
        for i in found:
            held = choice(nodes[i].dim.name, (parsed,))
            nodes[i] = Node(dim=held, parent=nodes[i].parent, values=nodes[i].values)
    return Space(name=space.name, nodes=tuple(nodes))


def _widest(dims: list[Dim]) -> Dim:
    """The first dimension, with the smallest low and the largest high end of all."""
    first = dims[0]
    if first.kind == "choice":
        return first
    lows, highs = [float(d.low or 0.0) for d in dims], [float(d.high or 0.0) for d in dims]
    return msgspec.structs.replace(first, low=min(lows), high=max(highs))


def named(dim: Dim, name: str) -> bool:
    """Whether ``name`` on the command line means this dimension."""
    short = dim.name.rpartition(".")[2]
    return name in (dim.name, short) or (name == "lr" and short.startswith(LR))


def check_fixed(given: tuple[str, ...], spaces: tuple[Space, ...]) -> None:
    """Check that every ``--fix`` names a dimension of some space.

    Raises:
        UsageError: one does not; the message lists the dimensions.
    """
    dims = [node.dim for space in spaces for node in space.nodes]
    for text in given:
        name, sign, _ = text.partition("=")
        if not sign or not any(named(dim, name.strip()) for dim in dims):
            known = sorted({"lr" if dim.name.startswith(LR) else dim.name for dim in dims})
            raise UsageError(f"--fix {text}: give NAME=VALUE with one of: {', '.join(known)}")


def _parsed(dim: Dim, value: str, text: str) -> Value:
    if dim.kind == "choice":
        found = [c for c in dim.choices if _matches(value, c)]
        if not found:
            raise UsageError(f"--fix {text}: one of {', '.join(map(str, dim.choices))}")
        return found[0]
    try:
        number = float(value)
    except ValueError:
        raise UsageError(f"--fix {text}: {value!r} is not a number") from None
    if not float(dim.low or 0.0) <= number <= float(dim.high or 0.0):
        raise UsageError(f"--fix {text}: from {dim.low:g} to {dim.high:g}")
    return round(number) if dim.kind == "int" else number


def _matches(text: str, choice: Value) -> bool:
    if isinstance(choice, float):
        try:
            return float(text) == choice
        except ValueError:
            return False
    return str(choice).lower() == text.lower()


def located(space: Space, raw: Mapping[str, Value | None]) -> dict[str, Value] | None:
    """The values of the active nodes; None where one is missing or out of range."""
    out: dict[str, Value] = {}
    for node in space.nodes:
        if not node.active(out):
            continue
        value = raw.get(node.dim.name)
        if value is None or not inside(node.dim, value):
            return None
        out[node.dim.name] = value
    return out


def neighbour(space: Space, values: Values, seed: int) -> dict[str, Value]:
    """``values`` with one changed: a choice to another, a number by up to a fifth of its range."""
    rng = random.Random(seed)
    active = {n.dim.name: n.dim for n in space.nodes if n.dim.name in values}
    free = [d for d in active.values() if d.kind != "choice" or len(d.choices) > 1]
    changed = dict(values)
    if free:
        dim = rng.choice(free)
        changed[dim.name] = _moved(dim, values[dim.name], rng)
    return complete(space, changed)


def _moved(dim: Dim, value: Value, rng: random.Random) -> Value:
    if dim.kind == "choice":
        return rng.choice([c for c in dim.choices if c != value])
    low, high = float(dim.low or 0.0), float(dim.high or 0.0)
    step = dim.step or (1.0 if dim.kind == "int" else 0.0)
    moved = float(value) + rng.uniform(-0.2, 0.2) * (high - low)
    if step:
        moved = low + round((moved - low) / step) * step
    moved = min(high, max(low, moved))
    return round(moved, 6) if dim.kind == "float" else round(moved)


def middle(dim: Dim) -> Value:
    """The first choice, or the middle of the range, on its step; where the dimension has a neutral
    value, a third of the range away from that.
    """
    if dim.kind == "choice":
        return dim.choices[0]
    assert dim.low is not None
    assert dim.high is not None
    middle = (dim.low + dim.high) / 2
    if dim.neutral is not None:
        away = (dim.high - dim.low) / 3
        middle = dim.neutral - away if middle < dim.neutral else dim.neutral + away
    if dim.step:
        middle = dim.low + round((middle - dim.low) / dim.step) * dim.step
    return round(middle, 6) if dim.kind == "float" else round(middle)


def complete(space: Space, values: Values) -> dict[str, Value]:
    """Values for every active node: those given if in range, else first choice or middle."""
    out: dict[str, Value] = {}
    for node in space.nodes:
        if node.active(out):
            name = node.dim.name
            wanted = values.get(name, middle(node.dim))
            out[name] = wanted if inside(node.dim, wanted) else middle(node.dim)
    return out


def canonical(record: Record) -> str:
    """A text that is equal for equal records."""
    return json.dumps(json.loads(codec.encode(record)), sort_keys=True)
