"""Proposes the next configuration by a Bayesian linear model of those that were tried.

    tried values --features--> posterior of the objective and of each constraint
    candidates   --features--> expected feasible improvement / sqrt(seconds) --> the next one

A deployment's speed is nearly a product, and its loss of quality nearly a sum, of effects of its
parts: a runtime, a quantizer, a pruning level, and pairs of them.  So both are a Bayesian linear
model over choices, pairs of choices and hinges of levels (a Gaussian process with a linear kernel:
Rasmussen & Williams 2006, ch. 2), which predicts a combination from trials of its parts after some
ten trials, where a density estimate (TPE) needs dozens.  A part that was never tried has its
prior's whole variance, so it is tried.  Expected improvement is weighed by the probability of
keeping every limit (Gardner et al., ICML 2014) and by the square root of the trial's cost.

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
"""Prior standard deviation of a pair's effect, relative to that of a single part."""
_DETAIL = 0.25
"""The same of a step's or runtime's own parameter."""
_HINGE = 0.6
"""The same of a hinge of a level without a neutral value, at each of the knots."""
_KNOTS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
_SLOPE, _CURVE, _BEND, _STARTS = 1.5, 2.0, 0.15, 0.3
"""The same of a level with a neutral value (such as 1.0 of the MACs kept), which counts as a
distance from that value: speed is linear in it and loss of quality a parabola, since the first
tenth that is removed matters least.  ``_BEND`` is the departure from the line at each knot,
``_STARTS`` the step's effect at its neutral value.
"""
_NOISES = (0.03, 0.08, 0.2)
"""Candidate standard deviations of log latency from one launch to the next."""
_ESTIMATE_NOISE = 0.35
"""Standard deviation of an estimated log latency from the measured one."""
_NOISE_TRIALS = 8
"""Fewest measured values from which the noise is inferred."""
_OWN = 0.5
"""Share of a launch's residual from the prediction that is the plan's own effect, not noise."""
_CONSTRAINT_NOISE = 0.1
_CLIP = 3.0
"""Constraints (``measured / limit - 1``) are clipped to this absolute value."""
_FAILS = "fails"
_NONE = "none"
"""The choice of a group of compression steps that takes none of them."""
_RANDOM = 400  # random candidates
_BEST = 3  # best trials whose neighbours are candidates
_MIN_COST_S = 0.1
"""Trials that cost less count as this."""
_MIN_GAIN = 1e-3
"""Expected improvement (of log latency, or another objective) below which nothing is proposed, and
below which the sampler's own proposal is not worth a trial.
"""


class Observation(NamedTuple):
    """A configuration that was tried.  ``objective`` (minimised; the logarithm of a ratio scale) is
    None where it failed or was ruled out; ``constraints`` are met at 0 and below.  An estimate, of
    what was not tried, has an objective and no constraints.
    """

    values: Values
    objective: float | None
    constraints: Mapping[str, float]

    @property
    def feasible(self) -> bool:
        return self.objective is not None and all(c <= 0 for c in self.constraints.values())


def propose(
    space: Space,
    seen: Sequence[Observation],
    cost_s: Callable[[Values], float],
    seed: int,
    estimates: Sequence[Observation] = (),
) -> dict[str, Value] | None:
    """The untried configuration of the best expected improvement for its cost; None where none is
    expected to improve, or nothing has been measured yet.

    Args:
        space: what may be proposed.
        seen: everything tried so far.
        cost_s: what a trial would take, in seconds.
        seed: random seed of the candidates.
        estimates: of configurations that were not tried.
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
    gains = _gains(space, seen, fresh, estimates)
    best, score = None, 0.0
    for i in sorted(range(len(fresh)), key=lambda i: -gains[i]):
        if gains[i] / math.sqrt(_MIN_COST_S) <= score:
            break  # the rest gain less, so none scores higher even at the least cost
        found = gains[i] / math.sqrt(max(cost_s(fresh[i]), _MIN_COST_S))
        if found > score:
            best, score = i, found
    return fresh[best] if best is not None and gains[best] > _MIN_GAIN else None


def unpromising(
    space: Space, seen: Sequence[Observation], values: Values, estimates: Sequence[Observation] = ()
) -> bool:
    """Whether hardly any improvement is expected; False until some trial is feasible."""
    if not any(s.feasible for s in seen):
        return False
    return _gains(space, seen, [values], estimates)[0] < _MIN_GAIN


def smoothed(
    space: Space, seen: Sequence[Observation], estimates: Sequence[Observation] = ()
) -> list[float | None]:
    """Each objective shrunk towards the model's prediction from all trials, since half of one
    launch's residual counts as noise.  None where there is no objective.
    """
    dims = {node.dim.name: node.dim for node in space.nodes}
    speed, _ = _matrices([_features(s.values, dims) for s in (*seen, *estimates)])
    measured = [(i, s.objective) for i, s in enumerate(seen) if s.objective is not None]
    if not measured:
        return [None] * len(seen)
    estimated = [(len(seen) + i, s.objective or 0.0) for i, s in enumerate(estimates)]
    mean, _ = _posterior(speed, speed[: len(seen)], measured, _noise(speed, measured), estimated)
    return [
        None if s.objective is None else float(m) + _OWN * (s.objective - float(m))
        for s, m in zip(seen, mean, strict=True)
    ]


def _key(values: Values) -> frozenset[tuple[str, Value]]:
    return frozenset(values.items())


# -- candidates ----------------------------------------------------------------------------


def _candidates(
    space: Space, seen: Sequence[Observation], rng: random.Random
) -> Iterator[dict[str, Value]]:
    """One or two changes away from the best trials, and random ones."""
    ranked = sorted(
        (s for s in seen if s.objective is not None),
        key=lambda s: (_violation(s), s.objective),
    )
    centers = list(ranked[:_BEST])
    for other in ranked[_BEST:]:  # and the best of each first choice (the runtime)
        root = space.nodes[0].dim.name
        if all(other.values.get(root) != s.values.get(root) for s in centers):
            centers.append(other)
    ladders = {node.dim.name: levels(node.dim) for node in space.nodes}
    for one in centers:
        for changed in _changes(space, one.values, ladders):
            yield changed
            yield from _changes(space, changed, ladders)
    for _ in range(_RANDOM):
        yield space.sample(lambda dim: rng.choice(ladders[dim.name]))


def _violation(seen: Observation) -> float:
    return math.fsum(max(0.0, c) for c in seen.constraints.values())


def _changes(
    space: Space, values: Values, ladders: Mapping[str, Sequence[Value]]
) -> Iterator[dict[str, Value]]:
    """Every configuration that differs in one active dimension."""
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


# -- expected improvement ------------------------------------------------------------------


def _gains(
    space: Space,
    seen: Sequence[Observation],
    fresh: Sequence[Values],
    estimates: Sequence[Observation],
) -> list[float]:
    """Expected improvement times the probability of keeping every limit; that probability alone
    where no trial keeps them yet.
    """
    import numpy as np
    from scipy.special import ndtr

    dims = {node.dim.name: node.dim for node in space.nodes}
    known = [*seen, *estimates]
    speed, loss = _matrices([_features(v, dims) for v in (*(s.values for s in known), *fresh)])
    tried, wanted = loss[: len(known)], loss[len(known) :]
    chance = np.ones(len(fresh))
    for name in sorted({name for s in seen for name in s.constraints} | {_FAILS}):
        found = [(i, c) for i, s in enumerate(seen) if (c := _constraint(s, name)) is not None]
        mean, spread = _posterior(tried, wanted, found, _CONSTRAINT_NOISE)
        chance = chance * ndtr(-mean / spread)
    feasible = [s.objective for s in seen if s.feasible and s.objective is not None]
    if not feasible:
        return [float(c) for c in chance]
    tried, wanted = speed[: len(known)], speed[len(known) :]
    measured = [(i, s.objective) for i, s in enumerate(seen) if s.objective is not None]
    noise = _noise(tried, measured)
    estimated = [(len(seen) + i, s.objective or 0.0) for i, s in enumerate(estimates)]
    mean, spread = _posterior(tried, wanted, measured, noise, estimated)
    z = (min(feasible) - mean) / spread
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return [float(g) for g in chance * spread * (z * ndtr(z) + density)]


def _constraint(seen: Observation, name: str) -> float | None:
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
    estimated: Sequence[tuple[int, float]] = (),
) -> tuple[Any, Any]:
    """Posterior mean and standard deviation at the rows of ``wanted``, given the values ``found``
    and ``estimated`` at rows of ``tried``; rows are feature vectors.
    """
    import numpy as np

    center, scale = _center_and_scale(found)
    at, values = _known(tried, [*found, *estimated])
    noises = np.array([noise] * len(found) + [_ESTIMATE_NOISE] * len(estimated))
    kernel = at @ at.T + np.diag((noises / scale) ** 2)
    across = wanted @ at.T
    solved = np.linalg.solve(kernel, across.T)
    mean = center + solved.T @ (values - center)
    left = np.einsum("ij,ij->i", wanted, wanted) - np.einsum("ij,ji->i", across, solved)
    return mean, scale * np.sqrt(np.maximum(left, 1e-9)) + noise


def _known(tried: Any, found: Sequence[tuple[int, float]]) -> tuple[Any, Any]:
    """Feature rows and values of ``found``."""
    import numpy as np

    return tried[[i for i, _ in found]], np.array([v for _, v in found])


def _center_and_scale(found: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Median and scale of the values."""
    import numpy as np

    values = [v for _, v in found]
    return (float(np.median(values)), max(float(np.std(values)), 0.1)) if values else (0.0, 1.0)


def _noise(tried: Any, found: Sequence[tuple[int, float]]) -> float:
    """The noise of the largest marginal likelihood (Rasmussen & Williams 2006, eq. 5.8)."""
    import numpy as np

    if len(found) < _NOISE_TRIALS:
        return _NOISES[0]
    at, values = _known(tried, found)
    center, scale = _center_and_scale(found)
    off = (values - center) / scale

    def evidence(noise: float) -> float:
        kernel = at @ at.T + np.eye(len(at)) * (noise / scale) ** 2
        _, size = np.linalg.slogdet(kernel)
        return float(-off @ np.linalg.solve(kernel, off) - size)

    return max(_NOISES, key=evidence)


class _Features(NamedTuple):
    """A configuration's features by name, scaled by their prior standard deviation: for speed, and
    those that differ for the loss of quality.
    """

    speed: dict[str, float]
    loss: dict[str, float]


def _features(values: Values, dims: Mapping[str, Dim]) -> _Features:
    parts: dict[str, float] = {}
    curved: dict[str, float] = {}
    mains: dict[str, float] = {}
    leveled = {name.split(".")[0] for name in values if dims[name].neutral is not None}
    for name, value in values.items():
        dim = dims[name]
        if dim.kind != "choice":
            levels = _level(name, float(value), dim)
            parts |= levels.speed
            curved |= levels.loss
        elif "." not in name or _NONE in dim.choices:
            mains[f"{name}={value}"] = _STARTS if value in leveled else 1.0
        else:
            parts[f"{name}={value}"] = _DETAIL
    first = next(iter(mains), "")
    parts |= {f"{first} and {name}": _PAIR * x for name, x in list(parts.items())}
    curved |= {f"{first} and {name}": _PAIR * x for name, x in list(curved.items())}
    parts |= mains
    pairs = combinations(mains.items(), 2)
    parts |= {f"{a} and {b}": _PAIR * x * y for (a, x), (b, y) in pairs}
    return _Features(parts, curved)


def _level(name: str, value: float, dim: Dim) -> _Features:
    """Features of a numeric value: its distance from the low end, or from the neutral value."""
    low, high = float(dim.low or 0.0), float(dim.high or 0.0)
    if dim.neutral is None:
        share = (value - low) / (high - low)
        return _Features({f"{name}>{k}": _HINGE * (share - k) for k in _KNOTS if share > k}, {})
    far = max(abs(dim.neutral - low), abs(dim.neutral - high))
    share = abs(dim.neutral - value) / far
    bends = {f"{name}>{k}": _BEND * (share - k) for k in _KNOTS[1:] if share > k}
    return _Features({name: _SLOPE * share, **bends}, {name: _CURVE * share**2})


def _matrices(rows: Sequence[_Features]) -> tuple[Any, Any]:
    """[configurations, features], for speed and for the loss of quality."""
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
