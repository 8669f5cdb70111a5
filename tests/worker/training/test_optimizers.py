"""From a recipe to torch: what is refused, and which weights are Muon's.

The rules themselves are held to their formulas by tests/test_optimizer_math.py.
"""

import pytest
import torch
from torch import nn

from autotune.errors import JobError
from autotune.records.plan import Recipe
from autotune.worker.training import optimizers


class Reader(nn.Module):
    """One of everything that has a 2-D tensor."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 4)
        self.places = nn.Parameter(torch.zeros(6, 4))
        self.kernel = nn.Conv1d(4, 4, 3)
        self.first = nn.Linear(4, 8)
        self.memory = nn.GRU(8, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 10)
        if tied:
            self.head.weight = self.words.weight


def names(model: nn.Module, params: list[nn.Parameter]) -> set[str]:
    known = {id(p): name for name, p in model.named_parameters()}
    return {known[id(p)] for p in params}


@pytest.mark.parametrize("tied", [False, True])
def test_muon_takes_the_hidden_matrices_and_adamw_the_rest(tied: bool) -> None:
    model = Reader(tied=tied)
    ours = {"first.weight", "memory.weight_ih_l0", "memory.weight_hh_l0"}
    assert names(model, optimizers.hidden_matrices(model)) == ours
    muon, rest = optimizers.build(Recipe(optimizer="muon", lr=0.01), model).optimizers
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(rest, torch.optim.AdamW)
    assert names(model, muon.param_groups[0]["params"]) == ours
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names(model, rest.param_groups[0]["params"]) == trainable - ours


def test_a_model_without_hidden_matrices_refuses_muon() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    assert optimizers.hidden_matrices(model) == []
    with pytest.raises(JobError, match="no hidden matrix") as caught:
        optimizers.build(Recipe(optimizer="muon"), model)
    assert caught.value.kind == "unsupported"
    assert optimizers.unavailable("muon", None) is None


def test_a_torch_without_the_rule_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    reason = optimizers.unavailable("muon", 3)
    assert reason is not None
    assert torch.__version__ in reason
    assert "torch.optim.Muon" in reason
    assert optimizers.unavailable("adam", 0) is None


def test_a_wrong_hyperparameter_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        optimizers.build(Recipe(optimizer="sgd", lr=-1.0), nn.Linear(2, 2))


def test_a_step_takes_a_share_of_the_learning_rate() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    rule = optimizers.build(Recipe(optimizer="sgd", lr=0.5), model)
    for share in (1.0, 0.5, 0.0):
        model.weight.grad = torch.ones(1, 1)
        rule.step(share)
    assert float(model.weight.detach()) == pytest.approx(1 - 0.5 - 0.25)
    rule.zero_grad()
    assert model.weight.grad is None
