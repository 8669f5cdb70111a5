"""Groups of coupled channels, found by torch-pruning's dependency graph and stored by name.

    one trace --> groups of members (layer, side, rows) --> cut from any copy of the model

The graph is built once; trying a group or a level then takes a copy, slices and a forward pass.
All members are cut at once, so that two groups that share a layer do not shift each other's rows.
A unit is the least part of a group that can be removed: one channel, the same channel of each of a
convolution's groups, or all channels of an attention head.
"""

import copy
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from autotune.compress._prune import recurrent
from autotune.compress._prune.importance import Importance
from autotune.errors import JobError
from autotune.forms.flat import Flat
from autotune.forms.module import tie, ties

_ROOTS = [nn.modules.conv._ConvNd, nn.Linear]


class Member(NamedTuple):
    """One side of one layer (or a bare parameter): its rows, and each one's channel."""

    name: str
    side: str
    cut: Callable[[Any, list[int]], Any]
    dim: Any
    rows: Tensor
    roots: Tensor


@dataclass(frozen=True)
class Group:
    """``scores`` [channels]: least goes first.  ``units`` [channels]: number of each one's unit.
    ``counts``: attributes that follow the width, by module: name -> channels that make one.
    """

    members: tuple[Member, ...]
    scores: Tensor
    units: Tensor
    counts: tuple[tuple[str, str, int], ...] = ()

    @property
    def unit_scores(self) -> Tensor:
        """The mean score of each unit's channels."""
        total = torch.zeros(int(self.units.max()) + 1).index_add_(0, self.units, self.scores)
        return total / torch.bincount(self.units)

    def without(self, kept: Tensor) -> Tensor:
        """Channels, True where they go, from units, True where they stay."""
        return ~kept[self.units]


Cut = Sequence[tuple[Group, Tensor]]


def find(
    model: Flat, inputs: Sequence[Tensor], ignored: set[str], importance: Importance
) -> list[Group]:
    """The groups of a model without output channels of an ignored layer.

    Raises:
        JobError: unsupported: torch-pruning cannot follow the model, and it has no recurrent layer.
    """
    recurring = _recurring(model, inputs, importance)
    try:
        return _traced(model, inputs, ignored, importance) + recurring
    except Exception as error:  # torch-pruning raises whatever its graph walk meets
        if recurring:
            return recurring
        raise unsupported(error) from error


def unsupported(error: Exception) -> JobError:
    """The error for a model that cannot be pruned."""
    text = (str(error).strip().splitlines() or [""])[0]
    why = f"this model cannot be pruned: {type(error).__name__}: {text}"
    return JobError("unsupported", why, never="prune")


def _traced(
    model: Flat, inputs: Sequence[Tensor], ignored: set[str], importance: Importance
) -> list[Group]:
    """Groups found by torch-pruning's graph."""
    import torch_pruning

    model = copy.deepcopy(model).requires_grad_(True)  # the graph is autograd's
    names: dict[Any, str] = {module: name for name, module in model.named_modules()}
    rank = importance.of(model)
    left = [m for name in sorted(ignored) for m in model.get_submodule(name).modules()]
    found = []
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about loose parameters: a forward pass decides
        graph = torch_pruning.DependencyGraph().build_dependency(
            model,
            tuple(inputs),
            output_transform=lambda outputs: [o for o in outputs if o.grad_fn is not None],
        )
        parameters = {id(p): name for p, name in graph._param_to_name.items()}
        for items, scores in _followed(graph, left, rank):
            members = [m for item in items if (m := _member(item, names, parameters)) is not None]
            size = _grouped(model, members)
            units = torch.arange(len(scores)) % (len(scores) // size)
            found.append(Group(tuple(members), scores.float(), units))
    return found


def _followed(
    graph: Any, ignored: Sequence[nn.Module], rank: Callable[[Any], Tensor | None]
) -> Iterator[tuple[Any, Tensor]]:
    """The groups that start at each layer's output, each once, with their channels' scores; not
    those with an ignored layer.  A layer for which torch-pruning fails is not pruned; the others
    still are.

    Raises:
        Exception: what torch-pruning raised, if it failed for every layer.
    """
    seen: set[nn.Module] = set()
    whole = {*ignored, *graph.IGNORED_LAYERS_IN_TRACING}
    failed: Exception | None = None
    reached = False
    for layer in list(graph.module2node):
        if not isinstance(layer, tuple(_ROOTS)) or layer in whole or layer in seen:
            continue
        pruner = graph.get_pruner_of_module(layer)
        channels = pruner.get_out_channels(layer) if pruner is not None else None
        if channels is None:
            continue
        try:
            group = graph.get_pruning_group(layer, pruner.prune_out_channels, list(range(channels)))
            out = {d.target.module for d, _ in group if graph.is_out_channel_pruning_fn(d.handler)}
            seen |= out
            scores = None if out & whole else rank(group)
        except Exception as error:
            failed = error
            continue
        reached = True
        if scores is not None:
            yield group, scores
    if failed is not None and not reached:
        raise failed


def _recurring(model: Flat, inputs: Sequence[Tensor], rank: Importance) -> list[Group]:
    """Hidden units of recurrent layers, where removal equals zeroing the weights that read them."""
    found: list[Group] = []
    if not any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return found
    learning = copy.deepcopy(model).requires_grad_(True)  # the graph is autograd's
    for name, given in recurrent.readers(learning, inputs).items():
        layer: Any = model.get_submodule(name)
        units = torch.arange(layer.hidden_size)
        members = [Member(name, "hidden", recurrent.cut_hidden, None, units, units)]
        for reader, module in given:
            width = getattr(module, "in_features", None) or module.input_size
            rows = torch.arange(int(width))
            cut_in = _cut_linear if isinstance(module, nn.Linear) else recurrent.cut_input
            side = "prune_in_channels"
            members.append(Member(reader, side, cut_in, None, rows, rows % len(units)))
        group = Group(tuple(members), rank.of_units(layer, name, given), units)
        gone = units % 3 == 1
        silent = copy.deepcopy(model)
        readers = [(reader, silent.get_submodule(reader)) for reader, _ in given]
        recurrent.silence(silent.get_submodule(name), name, readers, gone)
        try:
            with torch.no_grad():
                pairs = zip(cut(model, [(group, gone)])(*inputs), silent(*inputs), strict=True)
                same = all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in pairs)
        except Exception:  # the user's forward depends on the width
            continue
        if same and bool(gone.any()):
            found.append(group)
    return found


def _cut_linear(layer: Any, gone: list[int]) -> None:
    kept = torch.tensor(sorted(set(range(layer.in_features)) - set(gone)))
    layer.weight.data = layer.weight.data[:, kept].clone()
    layer.in_features = len(kept)


def _member(item: Any, names: dict[Any, str], parameters: dict[int, str]) -> Member | None:
    """None for operators without weights, which torch-pruning keeps nodes for."""
    dependency, rows = item
    layer = dependency.target.module
    name = parameters.get(id(layer)) if isinstance(layer, nn.Parameter) else names.get(layer)
    if name is None or any(root is None for root in item.root_idxs):
        return None
    handler, dim = dependency.handler, dependency.target.pruning_dim
    numbers = torch.as_tensor([int(row) for row in rows])
    return Member(
        name, handler.__name__, handler, dim, numbers, torch.as_tensor(list(item.root_idxs))
    )


def _grouped(model: nn.Module, members: Sequence[Member]) -> int:
    """The largest number of groups of the members' grouped convolutions and group norms."""
    most = 1
    modules = dict(model.named_modules())
    for member in members:
        layer = modules.get(member.name)
        if isinstance(layer, nn.modules.conv._ConvNd) and layer.groups < layer.out_channels:
            most = max(most, layer.groups)
        if isinstance(layer, nn.GroupNorm) and layer.num_groups < layer.num_channels:
            most = max(most, layer.num_groups)
    return most


def cut(model: Flat, removals: Cut) -> Flat:
    """A copy without the channels marked True, in every member of their groups.

    Raises:
        JobError: unsupported: tied weights would differ.
    """
    duplicate = copy.deepcopy(model)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    sides: dict[tuple[str, str], list[tuple[Member, Tensor]]] = defaultdict(list)
    for group, gone in removals:
        if not bool(gone.any()):
            continue
        for member in group.members:
            sides[member.name, member.side].append((member, member.rows[gone[member.roots]]))
        for owner, attribute, each in group.counts:
            holder = duplicate.get_submodule(owner)
            setattr(holder, attribute, getattr(holder, attribute) - int(gone.sum()) // each)
    for (name, _), parts in sides.items():
        rows = torch.unique(torch.cat([rows for _, rows in parts])).tolist()
        _slice(duplicate, name, parts[0][0], rows)
    for name, parameter in duplicate.named_parameters():
        parameter.requires_grad_(flags.get(name, True))
    if not tie(duplicate, ties(model)):
        raise JobError("unsupported", "pruning would separate weights that the model ties")
    return duplicate


def _slice(model: nn.Module, name: str, member: Member, rows: list[int]) -> None:
    owner, _, leaf = name.rpartition(".")
    holder = model.get_submodule(owner)
    target = getattr(holder, leaf)
    pruner = getattr(member.cut, "__self__", None)
    if pruner is not None:  # torch-pruning's, which reads the dimension from here
        pruner.pruning_dim = member.dim
    made = member.cut(target, rows)
    if isinstance(target, nn.Parameter):
        setattr(holder, leaf, made)


def shares(removals: Cut, model: nn.Module) -> dict[str, float]:
    """By layer, the share of its operations that is kept: of its outputs times of its inputs."""
    gone: dict[tuple[str, str], int] = defaultdict(int)
    for group, lost in removals:
        for member in group.members:
            gone[member.name, member.side] += int(lost[member.roots].sum())
    found: dict[str, float] = defaultdict(lambda: 1.0)
    modules = dict(model.named_modules())
    for (name, side), count in gone.items():
        layer = modules.get(name)
        if isinstance(layer, nn.Linear):
            whole = layer.in_features if side == "prune_in_channels" else layer.out_features
        elif isinstance(layer, nn.RNNBase) and side == "hidden":
            left = 1 - count / layer.hidden_size
            sizes = {k: w.numel() for k, w in layer.named_parameters() if w.dim() == 2}
            first = sum(n for k, n in sizes.items() if k.startswith("weight_ih_l0"))
            found[name] *= left * (first + (sum(sizes.values()) - first) * left)
            found[name] /= sum(sizes.values())
            continue
        elif isinstance(layer, nn.modules.conv._ConvNd):
            whole = layer.in_channels if side == "prune_in_channels" else layer.out_channels
        else:
            continue
        found[name] *= 1 - count / whole
    return found


def by_heads(model: nn.Module, group: Group) -> list[Group]:
    """The group with whole attention heads as units, for each head size that the integer attributes
    with "head" in their names in the surrounding modules suggest.
    """
    width = len(group.scores)
    owners = {m.name.rpartition(".")[0] for m in group.members if m.side == "prune_out_channels"}
    numbers: set[int] = set()
    counts: list[tuple[str, str, int]] = []
    for owner in sorted(owners):
        for name, value in vars(model.get_submodule(owner)).items():
            if type(value) is int and "head" in name and 1 < value <= width:
                counts.append((owner, name, value))
                numbers.add(value if "size" in name or "dim" in name else width // value)
    found = []
    for size in sorted(n for n in numbers if 1 < n < width and width % n == 0):
        follow = tuple(
            (owner, name, size if value == width // size else 1)
            for owner, name, value in counts
            if value in (width, width // size) and value != size
        )
        units = torch.arange(width) // size
        found.append(replace(group, units=units, counts=follow))
    return found
