"""Each rule against its published formula in NumPy, 100 steps in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from autotune.records.plan import Recipe
from autotune.worker import optimizers

STEPS = 100
RULES = {
    "sgd": Recipe(optimizer="sgd", lr=0.02),
    "sgd decayed": Recipe(optimizer="sgd", lr=0.02, weight_decay=0.1),
    "momentum": Recipe(optimizer="momentum", lr=0.01),
    "momentum 0.5": Recipe(optimizer="momentum", lr=0.01, momentum=0.5, weight_decay=0.01),
    "nesterov": Recipe(optimizer="nesterov", lr=0.01),
    "nesterov 0.7": Recipe(optimizer="nesterov", lr=0.01, momentum=0.7, weight_decay=0.01),
    "adam": Recipe(optimizer="adam", lr=0.01),
    "adam all": Recipe(
        optimizer="adam", lr=0.02, beta1=0.8, beta2=0.95, eps=1e-4, weight_decay=0.1
    ),
    "adamw": Recipe(optimizer="adamw", lr=0.01),
    "adamw all": Recipe(
        optimizer="adamw", lr=0.02, beta1=0.8, beta2=0.95, eps=1e-4, weight_decay=0.1
    ),
}


def _problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    root = rng.normal(size=(4, 4))
    return root @ root.T + np.eye(4), rng.normal(size=4), rng.normal(size=4)


def _sgd_like(recipe: Recipe, grad, w: np.ndarray) -> np.ndarray:
    mu = 0.9 if recipe.momentum is None else recipe.momentum
    v = None
    for _ in range(STEPS):
        g = grad(w) + recipe.weight_decay * w
        if recipe.optimizer == "sgd":
            w = w - recipe.lr * g
            continue
        v = g if v is None else mu * v + g
        w = w - recipe.lr * (g + mu * v if recipe.optimizer == "nesterov" else v)
    return w


def _adam_like(recipe: Recipe, grad, w: np.ndarray) -> np.ndarray:
    b1, b2 = recipe.beta1 or 0.9, recipe.beta2 or 0.999
    eps = recipe.eps or 1e-8
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t in range(1, STEPS + 1):
        g = grad(w)
        if recipe.optimizer == "adam":
            g = g + recipe.weight_decay * w
        else:
            w = w - recipe.lr * recipe.weight_decay * w
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        w = w - recipe.lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    return w


@pytest.mark.parametrize("name", RULES)
def test_rule_follows_its_formula(name: str) -> None:
    recipe = RULES[name]
    a, b, start = _problem()
    reference = _adam_like if recipe.optimizer.startswith("adam") else _sgd_like
    expected = reference(recipe, lambda w: a @ w - b, start)

    w = nn.Parameter(torch.tensor(start))
    optimizer = optimizers.build(recipe, [w])
    for _ in range(STEPS):
        optimizer.zero_grad()
        (0.5 * w @ torch.tensor(a) @ w - torch.tensor(b) @ w).backward()
        optimizer.step()

    assert np.abs(expected - start).max() > 1e-3
    np.testing.assert_allclose(w.detach().numpy(), expected, rtol=0, atol=1e-6)


def test_a_wrong_hyperparameter_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        optimizers.build(Recipe(optimizer="sgd", lr=-1.0), [nn.Parameter(torch.ones(1))])
