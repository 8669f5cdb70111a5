"""Removes groups of channels by importance until a share of the operations is left.

    groups (`groups`) x scores (`importance`) --bisection--> channels to remove --cut--> pruned copy

All groups of the model are ranked together, and the least important go first.  Widths are rounded
to multiples of 16, 8 or 4, which kernels run faster, if the level can still be met to 3 percentage
points; small layers are too coarse for that.
"""

import copy
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from autotune.compress._prune.groups import Cut, Group, by_heads, cut, find, shares, unsupported
from autotune.compress._prune.importance import Importance, costs
from autotune.errors import JobError
from autotune.forms.flat import Flat, flops

_CORRECTIONS = 5
_NEAR = 0.005  # of the dense operations: no further correction
_ROUNDED = (16, 8, 4, 1)
_CLOSE = 0.03  # of the dense operations
_TOLERANCE = 0.1  # the most that the kept share may differ from macs_kept
_MOST = 0.95  # of a layer's channels
_ODD = (0.29, 0.37)  # lead to widths that no fixed head width or head count divides
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.LSTM, nn.Embedding)

Reached = tuple[float, Flat]


class Level(NamedTuple):
    """A level: the share of operations to keep, the dense model's operations, what widths are a
    multiple of, and each layer's operations.
    """

    kept: float
    dense: float
    rounded: int
    costs: dict[str, float]


def prune(
    model: Flat, inputs: Sequence[Tensor], kept: float, importance: Importance | None = None
) -> Flat:
    """A pruned copy that keeps the share ``kept`` of the FLOPs of one call.

    ``importance`` decides which channels go first; without it the magnitude of their weights.

    Raises:
        JobError: unsupported: torch-pruning cannot follow the model, nothing in it can be
            pruned, or the level is out of reach.
    """
    with torch.no_grad():
        shapes = [output.shape for output in model(*inputs)]
    rank = importance or Importance("magnitude", {})
    found = find(model, inputs, _ignored(model, inputs), rank)
    groups = _usable(model, inputs, found, shapes)
    best: Reached | None = None
    dense, layers = flops(lambda: model(*inputs)), costs(model, inputs)
    for rounded in _ROUNDED:
        share, pruned = _search(model, inputs, groups, Level(kept, dense, rounded, layers))
        if best is None or abs(share - kept) < abs(best[0] - kept):
            best = share, pruned
        if abs(best[0] - kept) <= _CLOSE:
            break
    assert best is not None
    if abs(best[0] - kept) > _TOLERANCE or best[0] > 0.999:
        end = "least it leaves" if best[0] > kept else "nearest it comes"
        raise JobError(
            "unsupported",
            f"pruning cannot reach macs_kept {kept:g}: {best[0]:.2f} is the {end} "
            "(the rest is in layers that make the output or that cannot be pruned)",
            least={"prune.macs_kept": best[0] - _TOLERANCE} if best[0] > kept else None,
        )
    return _checked(best[1], inputs, shapes)


def _search(model: Flat, inputs: Sequence[Tensor], groups: list[Group], level: Level) -> Reached:
    """The copy nearest to the level: its operations are predicted layer by layer, and the
    prediction is corrected by those counted in a copy.
    """
    best: Reached | None = None
    wanted = level.kept
    for _ in range(_CORRECTIONS):
        pruned = cut(model, _chosen(model, groups, wanted, level))
        share = flops(functools.partial(pruned, *inputs)) / level.dense if level.dense else 1.0
        if best is None or abs(share - level.kept) < abs(best[0] - level.kept):
            best = share, pruned
        if abs(share - level.kept) < _NEAR:
            break
        wanted += level.kept - share
    assert best is not None
    return best


def _chosen(model: Flat, groups: list[Group], wanted: float, level: Level) -> Cut:
    """The channels to remove, so that the share ``wanted`` of all operations is left: bisection
    over the lowest rank that is kept.
    """
    ranked = _ranked(groups)
    units = sum(len(ranks) for _, ranks in ranked)
    other = level.dense - sum(level.costs.values())
    low, high = 0, units
    found: Cut = []
    while low < high:
        middle = (low + high) // 2
        found = [(g, g.without(_kept(g, ranks, middle, level.rounded))) for g, ranks in ranked]
        left = shares(found, model)
        share = (other + sum(c * left[n] for n, c in level.costs.items())) / max(level.dense, 1.0)
        if share <= wanted:
            high = middle
        else:
            low = middle + 1
    if low < units:
        found = [(g, g.without(_kept(g, ranks, low, level.rounded))) for g, ranks in ranked]
    return found


def _ranked(groups: list[Group]) -> list[tuple[Group, Tensor]]:
    """The rank of each group's units among all units by score; equal scores, such as those of dead
    units, get different ranks.
    """
    scores = [group.unit_scores for group in groups]
    order = torch.cat(scores).argsort(stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order))
    return list(zip(groups, torch.split(places, [len(s) for s in scores]), strict=True))


def _kept(group: Group, ranks: Tensor, last: int, rounded: int) -> Tensor:
    """Units that are kept: those of a rank over ``last``, at least some of each group, rounded to a
    width that kernels run faster.
    """
    units = len(ranks)
    count = max(int((ranks > last).sum()), math.ceil((1 - _MOST) * units), 1)
    if units == len(group.scores) and units >= 2 * rounded:
        count = max(rounded, round(count / rounded) * rounded)
    kept = torch.zeros(units, dtype=torch.bool)
    kept[torch.argsort(ranks, descending=True)[: min(count, units)]] = True
    return kept


def _ignored(model: Flat, inputs: Sequence[Tensor]) -> set[str]:
    """Names of layers that produce the output, and of attention blocks (heads fix their width)."""
    model = copy.deepcopy(model).requires_grad_(True)
    names = {module: name for name, module in model.named_modules()}
    made: dict[Any, nn.Module] = {}
    hooks = [
        module.register_forward_hook(lambda module, _, output: made.update({_root(output): module}))
        for module in names
        if isinstance(module, _LAYERS)
    ]
    try:
        with torch.enable_grad():
            outputs = model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    stack, seen, last = [o.grad_fn for o in outputs], set(), set()
    while stack:
        function = stack.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        if function in made:
            last.add(names[made[function]])
        else:
            stack += [parent for parent, _ in function.next_functions]
    blocks = {n for m, n in names.items() if isinstance(m, nn.MultiheadAttention)}
    return last | blocks


def _root(output: Any) -> Any:
    first = output[0] if isinstance(output, tuple) else output
    return first.grad_fn


def _usable(
    model: Flat, inputs: Sequence[Tensor], groups: list[Group], shapes: list[torch.Size]
) -> list[Group]:
    """The groups with which the pruned model still runs: all of them, or else one by one (a
    reshape with a fixed width forbids some); attention by heads where it cannot be by channels.

    Raises:
        JobError: unsupported: none is left.
    """
    error = _trial(model, inputs, groups, shapes) if groups else None
    if groups and error is None:
        return groups
    usable: list[Group] = []
    for group in groups:
        for way in (group, *by_heads(model, group)):
            if _trial(model, inputs, [*usable, way], shapes) is None:
                usable.append(way)
                break
    if not usable:
        raise unsupported(error or ValueError("no layer but those that make the output"))
    return usable


def _trial(
    model: Flat, inputs: Sequence[Tensor], groups: list[Group], shapes: list[torch.Size]
) -> Exception | None:
    """Remove some units of every group from a copy and run it: the error, or None."""
    try:
        for ratio in _ODD:
            removals = []
            for group in groups:
                units = int(group.units.max()) + 1
                kept = torch.arange(units) >= min(units - 1, max(1, round(ratio * units)))
                removals.append((group, group.without(kept)))
            _checked(cut(model, removals), inputs, shapes)
    except Exception as error:  # the user's forward and torch-pruning may raise anything
        return error
    return None


def _checked(pruned: Flat, inputs: Sequence[Tensor], shapes: list[torch.Size]) -> Flat:
    """The pruned model, after a forward pass that gave the expected shapes."""
    with torch.no_grad():
        found = [output.shape for output in pruned(*inputs)]
    if found != shapes:
        raise JobError("unsupported", f"pruning would change the output from {shapes} to {found}")
    return pruned
