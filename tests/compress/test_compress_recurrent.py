"""Hidden units of recurrent layers go where all who listen to them are known."""

import pytest
import torch
from torch import nn

from autotune.compress._prune import channels, groups, importance, recurrent
from autotune.errors import JobError
from autotune.forms.flat import Flat, flops
from autotune.forms.module import load, save


class Tagger(nn.Module):
    def __init__(self, cell: type[nn.RNNBase], ways: int, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = cell(6, 24, layers, batch_first=True, bidirectional=ways == 2)
        self.head = nn.Linear(24 * ways, 3)

    def forward(self, x):
        return self.head(self.cell(x)[0].mean(1))


X = torch.randn(1, 7, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["taylor", "magnitude"])
@pytest.mark.parametrize(
    ("cell", "ways", "layers"), [(nn.GRU, 1, 1), (nn.LSTM, 2, 2), (nn.RNN, 1, 2)]
)
def test_hidden_units_go_to_the_level_asked(tmp_path, cell, ways, layers, kind):
    net = Tagger(cell, ways, layers).eval()
    model = Flat(net, "tensor", ("input",))
    costs = importance.costs(model, (X,))
    assert sum(costs.values()) == pytest.approx(flops(lambda: model(X)))
    gates = importance.gates(model, [(X.repeat(4, 1, 1),)], 0)
    pruned = channels.prune(model, (X,), 0.5, importance.Importance(kind, costs, gates))
    assert abs(flops(lambda: pruned(X)) / flops(lambda: model(X)) - 0.5) < 0.06
    assert pruned.model.cell.hidden_size < 24
    save(pruned.model, net, tmp_path)
    again = load(Tagger(cell, ways, layers), tmp_path)
    assert torch.equal(again(X), pruned(X)[0])


def test_units_that_nobody_listens_to_go_without_a_trace():
    net = Tagger(nn.GRU, 1, 1).eval()
    model = Flat(net, "tensor", ("input",))
    gone = torch.tensor([0, 5, 7, 20])
    with torch.no_grad():
        net.head.weight[:, gone] = 0
        net.cell.weight_hh_l0[:, gone] = 0
    gates = importance.gates(model, [(X,)], 0)
    rank = importance.Importance("taylor", importance.costs(model, (X,)), gates)
    (group,) = [g for g in groups.find(model, (X,), {"model.head"}, rank) if len(g.scores) == 24]
    assert set(torch.argsort(group.unit_scores)[:4].tolist()) == set(gone.tolist())
    pruned = groups.cut(model, [(group, torch.isin(torch.arange(24), gone))])
    assert torch.allclose(pruned(X)[0], model(X)[0], atol=1e-6)


class States(nn.Module):
    """Its output holds the hidden state itself."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(6, 24, batch_first=True), nn.Linear(24, 3)

    def forward(self, x):
        y, state = self.cell(x)
        return self.head(y), state


class Mixed(States):
    """A norm reads the hidden units too: it would notice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(24)

    def forward(self, x):
        y, _ = self.cell(x)
        return self.head(self.norm(y))


@pytest.mark.parametrize("make", [States, Mixed])
def test_a_layer_with_other_readers_is_left(make):
    model = Flat(make().eval(), "tensor", ("input",))
    assert recurrent.readers(model, (X,)) == {}
    with pytest.raises(JobError, match="cannot be pruned"):
        channels.prune(model, (X,), 0.5)


class Attentive(nn.Module):
    """The last state asks all states: torch-pruning cannot follow a channel through that."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.ask = nn.GRU(6, 24, batch_first=True), nn.Linear(24, 24)
        self.head = nn.Sequential(nn.Linear(24, 256), nn.ReLU(), nn.Linear(256, 3))

    def forward(self, x):
        states, last = self.cell(x)
        weights = torch.softmax(states @ self.ask(last[-1]).unsqueeze(-1), 1)
        return self.head((states * weights).sum(1))


def test_what_cannot_be_followed_stays_whole_and_the_rest_is_pruned():
    pruned = channels.prune(Flat(Attentive().eval(), "tensor", ("input",)), (X,), 0.9)
    assert pruned.model.head[0].out_features < 256
    assert pruned.model.ask.out_features == 24
    with torch.inference_mode():
        assert pruned(X)[0].shape == (len(X), 3)
