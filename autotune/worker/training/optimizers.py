"""From a recipe to torch's optimizers.

    sgd, momentum, nesterov   torch.optim.SGD       rmsprop     torch.optim.RMSprop
    adam, adamw               .Adam, .AdamW         adafactor   .Adafactor
    nadam, radam              .NAdam, .RAdam        muon        .Muon and, for the rest, .AdamW

docs/algorithms.md has each update rule's formula and source.  Fields of the recipe
that are None take torch's defaults; `momentum` and `nesterov`, which in torch have none, take
0.9.  Weight decay is added to the gradient, but decoupled from it (Loshchilov & Hutter,
arXiv 1711.05101) in adamw, adafactor and muon, as in torch.

Muon updates the hidden matrices of a model (`hidden_matrices`), AdamW the rest, with the same
learning rate: Muon's update is scaled to the RMS of AdamW's (Liu et al., arXiv 2502.16982).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from autotune.errors import JobError
from autotune.records.plan import Optimizer, Recipe

_TORCH: dict[Optimizer, str] = {
    "sgd": "SGD",
    "momentum": "SGD",
    "nesterov": "SGD",
    "adam": "Adam",
    "adamw": "AdamW",
    "rmsprop": "RMSprop",
    "nadam": "NAdam",
    "radam": "RAdam",
    "adafactor": "Adafactor",
    "muon": "Muon",
}
_MOMENTUM = {"momentum": 0.9, "nesterov": 0.9, "rmsprop": 0.0, "muon": 0.95}
_DECAY2 = {"rmsprop": 0.99}
_DECAYS = (0.9, 0.999)
_EPS = 1e-8
_ADAFACTOR_SCALE = 1e-3  # the least size of a weight that the update is relative to


class CombinedOptimizer:
    """One or two torch optimizers that step together."""

    def __init__(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        self.optimizers = tuple(optimizers)
        self._rates = [group["lr"] for one in self.optimizers for group in one.param_groups]

    def zero_grad(self) -> None:
        """Reset the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(
        self, factor: float = 1.0, by: Callable[[torch.optim.Optimizer], Any] | None = None
    ) -> None:
        """One step at ``factor`` of the recipe's learning rate; ``by``: ``GradScaler.step``."""
        groups = (group for one in self.optimizers for group in one.param_groups)
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate * factor
        for optimizer in self.optimizers:
            optimizer.step() if by is None else by(optimizer)

    def state(self) -> list[dict[str, Any]]:
        """What `restore` needs."""
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Go on from `state`."""
        for optimizer, kept in zip(self.optimizers, state, strict=True):
            optimizer.load_state_dict(kept)


def build(recipe: Recipe, model: nn.Module) -> CombinedOptimizer:
    """The recipe's optimizer over the parameters of ``model`` that require a gradient.

    Raises:
        ValueError: a hyperparameter that torch refuses, or no parameters.
        JobError: ``unsupported``: this torch lacks the optimizer, or the model has no hidden
            matrix for Muon.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    matrices = hidden_matrices(model) if recipe.optimizer == "muon" else []
    reason = unavailable(recipe.optimizer, len(matrices))
    if reason is not None:
        raise JobError("unsupported", f"{recipe.optimizer} cannot be used: {reason}")
    if not matrices:
        return CombinedOptimizer([_made(recipe.optimizer, recipe, params)])
    ours = {id(p) for p in matrices}
    rest = [p for p in params if id(p) not in ours]
    muon = _made("muon", recipe, matrices)
    return CombinedOptimizer([muon, _made("adamw", recipe, rest)] if rest else [muon])


def unavailable(name: Optimizer, matrices: int | None) -> str | None:
    """Why an optimizer cannot be used; None if it can.

    Args:
        name: of the optimizer.
        matrices: how many hidden matrices the model has; None where that is not known.
    """
    if not hasattr(torch.optim, _TORCH[name]):
        return f"torch {torch.__version__} has no torch.optim.{_TORCH[name]}; upgrade torch"
    if name == "muon" and matrices == 0:
        return "the model has no hidden matrix: Muon takes 2-D weights before the last layer"
    return None


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights that Muon updates: 2-D, neither an embedding's nor the last layer's.

    The last layer is the last module registered that has a 2-D weight; tensors that are not
    called weights (learnt position embeddings) and convolution kernels are left out.
    """
    embedding, owners = set(), []
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            embedding |= {id(p) for p in own.values()}
        elif found := [p for name, p in own.items() if p.ndim == 2 and _is_weight(module, name)]:
            owners.append(found)
    left_out = embedding | {id(p) for p in (owners or [[]])[-1]}
    unique = {id(p): p for found in owners[:-1] for p in found if p.requires_grad}
    return [p for key, p in unique.items() if key not in left_out]


def _is_weight(module: nn.Module, name: str) -> bool:
    """Whether a parameter is a weight; a parametrized one is called ``original``."""
    return "weight" in name or (isinstance(module, ParametrizationList) and name == "original")


def _made(name: Optimizer, recipe: Recipe, params: list[nn.Parameter]) -> torch.optim.Optimizer:
    kind = getattr(torch.optim, _TORCH[name])
    common = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    made: torch.optim.Optimizer = kind(params, **common, **_fields(name, recipe, params))
    return made


def _fields(name: Optimizer, recipe: Recipe, params: list[nn.Parameter]) -> dict[str, Any]:
    """Arguments beside learning rate and weight decay."""
    momentum = _or(recipe.momentum, _MOMENTUM.get(name, 0.0))
    beta2 = _or(recipe.beta2, _DECAY2.get(name, _DECAYS[1]))
    eps = _or(recipe.eps, _EPS)
    if name == "sgd":
        return {}
    if name in ("momentum", "nesterov"):
        return {"momentum": momentum, "nesterov": name == "nesterov"}
    if name == "rmsprop":
        return {"momentum": momentum, "alpha": beta2, "eps": eps}
    if name == "adafactor":
        return {"eps": (recipe.eps, _ADAFACTOR_SCALE)}
    if name == "muon":
        return {"momentum": momentum, "adjust_lr_fn": "match_rms_adamw"}
    fields: dict[str, Any] = {"betas": (_or(recipe.beta1, _DECAYS[0]), beta2), "eps": eps}
    if name in ("adam", "adamw"):
        fields["fused"] = all(_fusible(p) for p in params) or None
    return fields


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _fusible(parameter: nn.Parameter) -> bool:
    """One kernel instead of a dozen for each parameter: 20 % off a small CNN's step."""
    return parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda")
