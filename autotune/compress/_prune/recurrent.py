"""Groups of hidden units of recurrent layers, which torch-pruning does not support.

    GRU, LSTM, RNN: unit i of every layer and direction --read by--> linear or recurrent layers

The readers of a recurrent layer are found by walking the autograd graph backwards from the inputs
of all other layers.  Removing a unit must give the same outputs as zeroing all weights that read it
(`silence`); callers compare the two, so that an overlooked reader makes the group unprunable and
never the model wrong.  All layers of one module lose the same units, as it has one ``hidden_size``.
Does not support projections (``proj_size``).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autotune.forms.flat import Flat

Reader = tuple[str, Any]
"""A layer's name and the layer."""


def readers(model: Flat, inputs: Sequence[Tensor]) -> dict[str, list[Reader]]:
    """By recurrent layer, the layers that read its output directly; without recurrent layers whose
    readers cannot lose inputs or whose output is part of the model's.
    """
    layers = {m: name for name, m in model.named_modules() if _listed(m)}
    made: dict[Any, str] = {}
    read: list[tuple[str, Any]] = []

    def hook(layer: nn.Module, given: Any, output: Any) -> None:
        read.extend((layers[layer], t.grad_fn) for t in _tensors(given))
        made.update({t.grad_fn: layers[layer] for t in _tensors(output)})

    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        with torch.enable_grad():
            outputs = model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    names = {name: m for m, name in layers.items()}
    found: dict[str, list[Reader]] = {n: [] for n, m in names.items() if _recurrent(m)}
    for output in outputs:
        for source in _sources(output.grad_fn, made):
            found.pop(source, None)
    for reader, function in read:
        for source in _sources(function, made) & found.keys():
            if _fits(names[reader], names[source]):
                if reader not in dict(found[source]):
                    found[source].append((reader, names[reader]))
            else:
                found.pop(source)
    return {name: given for name, given in found.items() if given}


def _listed(module: nn.Module) -> bool:
    return not any(True for _ in module.children()) and any(True for _ in module.parameters())


def _recurrent(module: nn.Module) -> bool:
    return isinstance(module, nn.RNNBase) and not module.proj_size


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.grad_fn is not None:
            yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _sources(function: Any, made: dict[Any, str]) -> set[str]:
    """The layers whose outputs a tensor is computed from without a layer in between."""
    stack, seen, found = [function], set(), set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in made:
            found.add(made[node])
        else:
            stack += [parent for parent, _ in node.next_functions]
    return found


def _fits(reader: Any, source: Any) -> bool:
    width = source.hidden_size
    taken = getattr(reader, "in_features", None) or getattr(reader, "input_size", 0)
    if not isinstance(reader, nn.Linear) and not _recurrent(reader):
        return False
    return bool(taken in (width, width * (2 if source.bidirectional else 1)))


def cut_hidden(layer: Any, gone: list[int]) -> None:
    """Remove hidden units of a recurrent layer, in place."""
    size, kept = layer.hidden_size, _rest(layer.hidden_size, gone)
    gates = layer.weight_hh_l0.shape[0] // size
    ways = 2 if layer.bidirectional else 1
    rows = torch.cat([kept + gate * size for gate in range(gates)])
    columns = torch.cat([kept + way * size for way in range(ways)])
    for name, parameter in layer.named_parameters():
        data = parameter.data[rows]
        if name.startswith("weight_hh"):
            data = data[:, kept]
        elif name.startswith("weight_ih") and not name.startswith("weight_ih_l0"):
            data = data[:, columns]
        parameter.data = data.clone()
    layer.hidden_size = len(kept)


def cut_input(layer: Any, gone: list[int]) -> None:
    """Remove inputs of a recurrent layer, in place."""
    kept = _rest(layer.input_size, gone)
    for name, parameter in layer.named_parameters():
        if name.startswith("weight_ih_l0"):
            parameter.data = parameter.data[:, kept].clone()
    layer.input_size = len(kept)


def _rest(size: int, gone: list[int]) -> Tensor:
    return torch.tensor(sorted(set(range(size)) - set(gone)))


def reading_weights(
    layer: nn.Module, name: str, given: Sequence[Reader]
) -> Iterator[tuple[str, Tensor]]:
    """The weights whose columns are a layer's hidden units (twice where it is bidirectional): its
    own and its readers', by the names that `importance.gates` gives them.
    """
    for key, weight in layer.named_parameters():
        inner = key.startswith("weight_ih") and not key.startswith("weight_ih_l0")
        if inner or key.startswith("weight_hh"):
            yield f"{name}.{key}", weight
    for reader, module in given:
        if isinstance(module, nn.Linear):
            yield reader, module.weight
            continue
        for key, weight in module.named_parameters():
            if key.startswith("weight_ih_l0"):
                yield f"{reader}.{key}", weight


def silence(layer: Any, name: str, given: Sequence[Reader], gone: Tensor) -> None:
    """Zero the weights that read some hidden units of a layer, in place."""
    with torch.no_grad():
        for _, weight in reading_weights(layer, name, given):
            weight[:, gone.repeat(weight.shape[1] // layer.hidden_size)] = 0


def work(layer: Any, given: Tensor) -> float:
    """Operations of one call."""
    steps = given.numel() / layer.input_size
    weights = sum(p.numel() for p in layer.parameters() if p.dim() == 2)
    return float(2.0 * steps * weights)
