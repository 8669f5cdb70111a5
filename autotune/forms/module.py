"""The ``module`` form: an ``nn.Module`` as weights and what pruning changed of its structure.

    make_model()  +  structure.json  +  weights.safetensors  ->  the pruned model

``structure.json`` is ``{"modules": {name: {attribute: value}}, "tensors": {name: shape}}``:
the integer attributes (``out_channels``, ``in_features``, ...) and tensor shapes that differ
from a fresh model's.  Nothing is pickled.  Layers that were added or removed are not stored.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Structure = dict[str, dict[str, Any]]

WEIGHTS = "weights.safetensors"
STRUCTURE = "structure.json"


def structure(model: nn.Module, dense: nn.Module) -> Structure:
    """What differs between a pruned model and a fresh one of the same code."""
    modules: dict[str, Any] = {}
    for name, module in model.named_modules():
        original = vars(dense.get_submodule(name))
        new = {k: v for k, v in vars(module).items() if _plain(v) and original.get(k, v) != v}
        if new:
            modules[name] = new
    before = dense.state_dict()
    tensors = {
        name: list(tensor.shape)
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, Tensor) and tensor.shape != before[name].shape
    }
    return {"modules": modules, "tensors": tensors}


def _plain(value: Any) -> bool:
    """Integers and tuples of them, as layers' sizes are (``out_features``, ``kernel_size``)."""
    if isinstance(value, tuple):
        return all(_plain(item) for item in value)
    return isinstance(value, int) and not isinstance(value, bool)


def restore(model: nn.Module, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Set a fresh model's attributes and tensor shapes; values are uninitialized until loaded.

    Tensors change in place, so that tied ones stay tied.
    """
    for name, values in changes["modules"].items():
        module = model.get_submodule(name)
        for key, value in values.items():
            setattr(module, key, tuple(value) if isinstance(value, list) else value)
    tensors = dict(_tensors(model))
    for name, shape in changes["tensors"].items():
        tensors[name].data = tensors[name].new_empty(shape)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def ties(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Tied parameters: groups of the names that share one."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def tie(model: nn.Module, groups: tuple[tuple[str, ...], ...]) -> bool:
    """Make each group one parameter again; False where the group's tensors differ."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for first, *others in groups:
        kept = parameters[first]
        for name in others:
            other = parameters[name]
            if kept.shape != other.shape or not torch.equal(kept, other):
                return False
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, kept)
    return True


def save(model: nn.Module, dense: nn.Module, folder: Path) -> None:
    """Write weights and structure into ``folder``."""
    from safetensors.torch import save_file

    save_file(_unshared(model), str(folder / WEIGHTS))
    text = json.dumps(structure(model, dense), indent=1, sort_keys=True)
    (folder / STRUCTURE).write_text(text + "\n")


def load(model: nn.Module, folder: Path) -> nn.Module:
    """Turn a fresh model into the saved one, in eval mode."""
    restore(model, json.loads((folder / STRUCTURE).read_text()))
    load_weights(model, folder / WEIGHTS)
    return model.eval()


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors state dict; of tied weights one name is enough.

    Raises:
        RuntimeError: names or shapes that do not fit.
    """
    from safetensors.torch import load_file

    found = load_file(str(path))
    missing, unexpected = model.load_state_dict(found, strict=False)
    own = model.state_dict(keep_vars=True)
    loaded = {id(own[name]) for name in found if name in own}
    missing = [name for name in missing if id(own[name]) not in loaded]
    if missing or unexpected:
        raise RuntimeError(f"missing: {missing[:5]}, unexpected: {list(unexpected)[:5]}")


def _unshared(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with each tensor once: tied ones under their first name, views copied."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    return state


def parameters(model: nn.Module) -> int:
    """Number of parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
