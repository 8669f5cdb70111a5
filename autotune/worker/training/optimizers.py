"""From a recipe to torch's optimizers.

    sgd, momentum, nesterov   torch.optim.SGD       rmsprop     torch.optim.RMSprop
    adam, adamw               .Adam, .AdamW         adafactor   .Adafactor
    nadam, radam              .NAdam, .RAdam        muon        .Muon and, for the rest, .AdamW

The rules stand in docs/algorithms.md, each with its formula and source.  Fields of the recipe
that are None take torch's defaults; `momentum` and `nesterov`, which in torch have none, take
0.9.  Weight decay is added to the gradient, but decoupled from it (Loshchilov & Hutter,
arXiv 1711.05101) in adamw, adafactor and muon, as in torch.

Muon is for the hidden matrices of a model (`hidden_matrices`); everything else is AdamW's, with
the same learning rate: Muon's update is scaled to the size of AdamW's (Liu et al.,
arXiv 2502.16982), so that one rate serves both.
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


class Rule:
    """One or two torch optimizers that step as one."""

    def __init__(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        self.optimizers = tuple(optimizers)
        self._rates = [group["lr"] for one in self.optimizers for group in one.param_groups]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(
        self, share: float = 1.0, by: Callable[[torch.optim.Optimizer], Any] | None = None
    ) -> None:
        """One step at ``share`` of the recipe's learning rate; ``by`` takes it (a scaler's)."""
        groups = (group for one in self.optimizers for group in one.param_groups)
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate * share
        for optimizer in self.optimizers:
            optimizer.step() if by is None else by(optimizer)

    def state(self) -> list[dict[str, Any]]:
        """What `restore` needs."""
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Go on from `state`."""
        for optimizer, kept in zip(self.optimizers, state, strict=True):
            optimizer.load_state_dict(kept)


def build(recipe: Recipe, model: nn.Module) -> Rule:
    """The recipe's rule over the parameters of ``model`` that require a gradient.

    Raises:
        ValueError: a hyperparameter outside what the rule allows, or no parameters.
        JobError: ``unsupported``: this torch lacks the rule or this model has no use for it.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    matrices = hidden_matrices(model) if recipe.optimizer == "muon" else []
    reason = unavailable(recipe.optimizer, len(matrices))
    if reason is not None:
        raise JobError("unsupported", f"{recipe.optimizer} cannot be used: {reason}")
    if not matrices:
        return Rule([_made(recipe.optimizer, recipe, params)])
    ours = {id(p) for p in matrices}
    rest = [p for p in params if id(p) not in ours]
    muon = _made("muon", recipe, matrices)
    return Rule([muon, _made("adamw", recipe, rest)] if rest else [muon])


def unavailable(name: Optimizer, matrices: int | None) -> str | None:
    """Why a rule cannot be used; None if it can.

    Args:
        name: of the rule.
        matrices: how many hidden matrices the model has, or None where nobody knows.
    """
    if not hasattr(torch.optim, _TORCH[name]):
        return f"torch {torch.__version__} has no torch.optim.{_TORCH[name]}; upgrade torch"
    if name == "muon" and matrices == 0:
        return "the model has no hidden matrix: Muon takes 2-D weights before the last layer"
    return None


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights that Muon is made for: 2-D, neither an embedding's nor the last layer's.

    The last layer is the last module registered that has a 2-D weight; tensors that are not
    called weights (learnt positions) and kernels of convolutions are left out.
    """
    embedding, owners = set(), []
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            embedding |= {id(p) for p in own.values()}
        elif found := [p for name, p in own.items() if p.ndim == 2 and _weighs(module, name)]:
            owners.append(found)
    left_out = embedding | {id(p) for p in (owners or [[]])[-1]}
    unique = {id(p): p for found in owners[:-1] for p in found if p.requires_grad}
    return [p for key, p in unique.items() if key not in left_out]


def _weighs(module: nn.Module, name: str) -> bool:
    """Whether a parameter is a weight; one that is computed from (rounded, say) is ``original``."""
    return "weight" in name or (isinstance(module, ParametrizationList) and name == "original")


def _made(name: Optimizer, recipe: Recipe, params: list[nn.Parameter]) -> torch.optim.Optimizer:
    kind = getattr(torch.optim, _TORCH[name])
    common = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    made: torch.optim.Optimizer = kind(params, **common, **_fields(name, recipe, params))
    return made


def _fields(name: Optimizer, recipe: Recipe, params: list[nn.Parameter]) -> dict[str, Any]:
    """What one rule takes beside learning rate and weight decay."""
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
    """One kernel instead of a dozen calls a parameter: saves a fifth of a small CNN's step."""
    return parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda")
