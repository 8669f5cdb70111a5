"""Which configuration next: what the tried ones have in common with those that were not.

    tried values --features--> posterior of the objective and of each constraint
    candidates   --features--> expected feasible improvement / sqrt(seconds) --> the next one

A deployment's speed is nearly a product, and its loss of quality nearly a sum, of what its parts
do: a runtime, a quantizer, a pruning level, and how well two of them go together.  So both are
a Bayesian linear model over choices, pairs of choices and hinges of levels (a Gaussian process
with a linear kernel: Rasmussen & Williams 2006, ch. 2), which predicts a combination from trials
of its parts after some ten trials, where a density estimate (TPE) needs dozens.  A part that was
never tried has its prior's whole variance, so it is tried.  Improvement is weighed by the chance
of keeping every limit (Gardner et al., ICML 2014) and by the root of what the trial costs.

What this does not know: interactions of three parts; the sampler's own proposals find these.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from autotune.records.plan import Value
from autotune.records.task import Dim
from autotune.search.space import Space, Values, complete

_PAIR = 0.35
"""Prior deviation of a pair's effect beside that of a single part."""
_DETAIL = 0.25
"""That of a step's or runtime's own parameter."""
_HINGE = 0.6
_KNOTS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
_SLOPE, _CURVE, _BEND, _STARTS = 1.5, 2.0, 0.15, 0.3
"""Of a level with a value at which its step does nothing: speed is a line from there and loss of
quality a parabola, as the first tenth that goes matters least; what departs from that at each knot,
and what the step does besides.
"""
_NOISES = (0.03, 0.08, 0.2)
"""Deviations of a logarithm of latency from one launch to the next that are weighed."""
_VAGUE = 0.35
"""That of an estimate from the measured value."""
_ENOUGH = 8
"""Values from which the noise is told."""
_OWN = 0.5
"""Of what a launch departs from the parts' prediction, how much is the plan's own and no luck."""
_NOISE_OF_CONSTRAINT = 0.1
_CLIP = 3.0
"""Constraints are ``measured / limit - 1``: how far beyond three limits is all the same."""
_FAILS = "fails"
_NONE = "none"
"""What a group of steps offers beside its steps."""
_RANDOM = 400
_BEST = 3
_CHEAPEST_S = 0.1
"""No trial is reckoned to cost less."""
_LEAST = 1e-3
"""Expected gain, as a share, below which nothing is proposed."""
_HOPELESS = 1e-3
"""And below which the sampler's own proposal is not worth a trial."""


class Seen(NamedTuple):
    """A configuration that was tried.  ``objective`` (to minimise) is None where it failed or
    was ruled out; ``constraints`` are kept at 0 and below.  A guess, of what was not tried, has an
    objective and no constraints.
    """

    values: Values
    objective: float | None
    constraints: Mapping[str, float]

    @property
    def feasible(self) -> bool:
        return self.objective is not None and all(c <= 0 for c in self.constraints.values())


def propose(
    space: Space,
    seen: Sequence[Seen],
    cost_s: Callable[[Values], float],
    seed: int,
    guesses: Sequence[Seen] = (),
) -> dict[str, Value] | None:
    """The untried configuration of the best expected gain for its cost; None where none is
    expected to gain, or nothing has been measured yet.

    Args:
        space: what may be proposed.
        seen: everything tried so far.
        cost_s: what a trial would take, in seconds.
        seed: of the random candidates.
        guesses: what estimates say of configurations that were not tried.
    """
    done = [s for s in seen if s.objective is not None]
    if not done:
        return None
    rng = random.Random(seed)
    known = {_key(s.values) for s in seen}
    options = {_key(v): v for v in _candidates(space, seen, rng)}
    fresh = [values for key, values in options.items() if key not in known]
    if not fresh:
        return None
    gains = _gains(space, seen, fresh, guesses)
    best, score = None, 0.0
    for i in sorted(range(len(fresh)), key=lambda i: -gains[i]):
        if gains[i] / math.sqrt(_CHEAPEST_S) <= score:
            break  # none of the rest can be better, whatever it costs
        found = gains[i] / math.sqrt(max(cost_s(fresh[i]), _CHEAPEST_S))
        if found > score:
            best, score = i, found
    return fresh[best] if best is not None and gains[best] > _LEAST else None


def hopeless(
    space: Space, seen: Sequence[Seen], values: Values, guesses: Sequence[Seen] = ()
) -> bool:
    """Whether next to nothing is expected of a configuration, whatever else speaks for it."""
    if not any(s.feasible for s in seen):
        return False
    return _gains(space, seen, [values], guesses)[0] < _HOPELESS


def steadied(
    space: Space, seen: Sequence[Seen], guesses: Sequence[Seen] = ()
) -> list[float | None]:
    """Each objective as all trials together have it: where one launch departs from what its parts
    did elsewhere, part is taken for luck.  None where there is no objective.
    """
    ours = {node.dim.name: node.dim for node in space.nodes}
    speed, _ = _matrices([_features(s.values, ours) for s in (*seen, *guesses)])
    measured = [(i, s.objective) for i, s in enumerate(seen) if s.objective is not None]
    if not measured:
        return [None] * len(seen)
    guessed = [(len(seen) + i, s.objective or 0.0) for i, s in enumerate(guesses)]
    mean, _ = _posterior(speed, speed[: len(seen)], measured, _noise(speed, measured), guessed)
    return [
        None if s.objective is None else float(m) + _OWN * (s.objective - float(m))
        for s, m in zip(seen, mean, strict=True)
    ]


def _key(values: Values) -> frozenset[tuple[str, Value]]:
    return frozenset(values.items())


# -- candidates ----------------------------------------------------------------------------


def _candidates(
    space: Space, seen: Sequence[Seen], rng: random.Random
) -> Iterator[dict[str, Value]]:
    """One or two changes away from the best, and anywhere."""
    ranked = sorted(
        (s for s in seen if s.objective is not None),
        key=lambda s: (_violation(s), s.objective),
    )
    firsts = list(ranked[:_BEST])
    for other in ranked[_BEST:]:  # and the best of each first choice (the runtime)
        root = space.nodes[0].dim.name
        if all(other.values.get(root) != s.values.get(root) for s in firsts):
            firsts.append(other)
    ladders = {node.dim.name: levels(node.dim) for node in space.nodes}
    for one in firsts:
        for changed in _changes(space, one.values, ladders):
            yield changed
            yield from _changes(space, changed, ladders)
    for _ in range(_RANDOM):
        yield space.sample(lambda dim: rng.choice(ladders[dim.name]))


def _violation(seen: Seen) -> float:
    return math.fsum(max(0.0, c) for c in seen.constraints.values())


def _changes(
    space: Space, values: Values, ladders: Mapping[str, Sequence[Value]]
) -> Iterator[dict[str, Value]]:
    """Every value that one active dimension could have instead."""
    parents = {node.parent for node in space.nodes}
    for name, now in values.items():
        for value in ladders[name]:
            if value != now:
                changed = {**values, name: value}
                yield complete(space, changed) if name in parents else changed


def levels(dim: Dim) -> tuple[Value, ...]:
    """All values of a dimension, or nine of a continuous one."""
    if dim.kind == "choice":
        return dim.choices
    low, high = float(dim.low or 0.0), float(dim.high or 0.0)
    step = dim.step or (1.0 if dim.kind == "int" and high - low <= 16 else (high - low) / 8)
    values = [min(high, low + i * step) for i in range(round((high - low) / step) + 1)]
    return tuple(dict.fromkeys(round(v) if dim.kind == "int" else round(v, 6) for v in values))


# -- what they would give ------------------------------------------------------------------


def _gains(
    space: Space, seen: Sequence[Seen], fresh: Sequence[Values], guesses: Sequence[Seen]
) -> list[float]:
    """Expected improvement times the chance of keeping every limit; where nothing keeps them yet,
    that chance alone.
    """
    import numpy as np
    from scipy.special import ndtr

    ours = {node.dim.name: node.dim for node in space.nodes}
    told = [*seen, *guesses]
    speed, loss = _matrices([_features(v, ours) for v in (*(s.values for s in told), *fresh)])
    tried, wanted = loss[: len(told)], loss[len(told) :]
    chance = np.ones(len(fresh))
    for name in sorted({name for s in seen for name in s.constraints} | {_FAILS}):
        found = [(i, c) for i, s in enumerate(seen) if (c := _constraint(s, name)) is not None]
        mean, spread = _posterior(tried, wanted, found, _NOISE_OF_CONSTRAINT)
        chance = chance * ndtr(-mean / spread)
    kept = [s.objective for s in seen if s.feasible and s.objective is not None]
    if not kept:
        return [float(c) for c in chance]
    tried, wanted = speed[: len(told)], speed[len(told) :]
    measured = [(i, s.objective) for i, s in enumerate(seen) if s.objective is not None]
    noise = _noise(tried, measured)
    guessed = [(len(seen) + i, s.objective or 0.0) for i, s in enumerate(guesses)]
    mean, spread = _posterior(tried, wanted, measured, noise, guessed)
    z = (min(kept) - mean) / spread
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return [float(g) for g in chance * spread * (z * ndtr(z) + density)]


def _constraint(seen: Seen, name: str) -> float | None:
    failed = seen.objective is None
    if name == _FAILS:
        return 1.0 if failed else -1.0
    value = seen.constraints.get(name)
    return None if value is None or failed else max(-_CLIP, min(_CLIP, value))


def _posterior(
    tried: Any,
    wanted: Any,
    found: Sequence[tuple[int, float]],
    noise: float,
    guessed: Sequence[tuple[int, float]] = (),
) -> tuple[Any, Any]:
    """Mean and deviation at ``wanted``, after the values ``found`` at rows of ``tried``, and those
    ``guessed``.
    """
    import numpy as np

    center, scale = _middle(found)
    at, values = _known(tried, [*found, *guessed])
    noises = np.array([noise] * len(found) + [_VAGUE] * len(guessed))
    kernel = at @ at.T + np.diag((noises / scale) ** 2)
    across = wanted @ at.T
    solved = np.linalg.solve(kernel, across.T)
    mean = center + solved.T @ (values - center)
    left = np.einsum("ij,ij->i", wanted, wanted) - np.einsum("ij,ji->i", across, solved)
    return mean, scale * np.sqrt(np.maximum(left, 1e-9)) + noise


def _known(tried: Any, found: Sequence[tuple[int, float]]) -> tuple[Any, Any]:
    """Rows and values of what was found."""
    import numpy as np

    return tried[[i for i, _ in found]], np.array([v for _, v in found])


def _middle(found: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """The values' middle and scale."""
    import numpy as np

    values = [v for _, v in found]
    return (float(np.median(values)), max(float(np.std(values)), 0.1)) if values else (0.0, 1.0)


def _noise(tried: Any, found: Sequence[tuple[int, float]]) -> float:
    """The deviation under which these values are likeliest (Rasmussen & Williams 2006, eq. 5.8)."""
    import numpy as np

    if len(found) < _ENOUGH:
        return _NOISES[0]
    at, values = _known(tried, found)
    center, scale = _middle(found)
    off = (values - center) / scale

    def evidence(noise: float) -> float:
        kernel = at @ at.T + np.eye(len(at)) * (noise / scale) ** 2
        _, size = np.linalg.slogdet(kernel)
        return float(-off @ np.linalg.solve(kernel, off) - size)

    return max(_NOISES, key=evidence)


class _Parts(NamedTuple):
    """A configuration's parts by name, weighted by their prior deviation: for speed, and what is
    different of them for the loss of quality.
    """

    speed: dict[str, float]
    loss: dict[str, float]


def _features(values: Values, dims: Mapping[str, Dim]) -> _Parts:
    parts: dict[str, float] = {}
    curved: dict[str, float] = {}
    mains: dict[str, float] = {}
    slight = {name.split(".")[0] for name in values if dims[name].neutral is not None}
    for name, value in values.items():
        dim = dims[name]
        if dim.kind != "choice":
            levels = _level(name, float(value), dim)
            parts |= levels.speed
            curved |= levels.loss
        elif "." not in name or _NONE in dim.choices:
            mains[f"{name}={value}"] = _STARTS if value in slight else 1.0
        else:
            parts[f"{name}={value}"] = _DETAIL
    first = next(iter(mains), "")
    parts |= {f"{first} and {name}": _PAIR * x for name, x in list(parts.items())}
    curved |= {f"{first} and {name}": _PAIR * x for name, x in list(curved.items())}
    parts |= mains
    pairs = combinations(mains.items(), 2)
    parts |= {f"{a} and {b}": _PAIR * x * y for (a, x), (b, y) in pairs}
    return _Parts(parts, curved)


def _level(name: str, value: float, dim: Dim) -> _Parts:
    """A level, from its low end; or, where its step does nothing at a value, from there."""
    low, high = float(dim.low or 0.0), float(dim.high or 0.0)
    if dim.neutral is None:
        share = (value - low) / (high - low)
        return _Parts({f"{name}>{k}": _HINGE * (share - k) for k in _KNOTS if share > k}, {})
    far = max(abs(dim.neutral - low), abs(dim.neutral - high))
    share = abs(dim.neutral - value) / far
    bends = {f"{name}>{k}": _BEND * (share - k) for k in _KNOTS[1:] if share > k}
    return _Parts({name: _SLOPE * share, **bends}, {name: _CURVE * share**2})


def _matrices(rows: Sequence[_Parts]) -> tuple[Any, Any]:
    """A row for each configuration, a column for each part: for speed, and for the loss."""
    import numpy as np

    names = dict.fromkeys(name for row in rows for name in row.speed)
    columns = {name: i for i, name in enumerate(names)}
    speed = np.zeros((len(rows), len(columns)))
    for i, row in enumerate(rows):
        speed[i, [columns[name] for name in row.speed]] = list(row.speed.values())
    loss = speed.copy()
    for i, row in enumerate(rows):
        for name, value in row.loss.items():
            loss[i, columns[name]] = value
    return speed, loss
