"""The module form: structure.json and weights rebuild a pruned model; ties survive."""

import json

import pytest
import torch
from torch import nn

from autotune.forms import module


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    )


def narrowed() -> nn.Module:
    """`small` with 3 channels of its convolution gone, as a pruner leaves it."""
    model = small()
    conv, norm, head = model[0], model[1], model[4]
    conv.weight, conv.bias = nn.Parameter(conv.weight[:5]), nn.Parameter(conv.bias[:5])
    conv.out_channels = norm.num_features = 5
    norm.weight, norm.bias = nn.Parameter(norm.weight[:5]), nn.Parameter(norm.bias[:5])
    norm.running_mean, norm.running_var = torch.rand(5), torch.rand(5)
    head.weight, head.in_features = nn.Parameter(head.weight[:, : 5 * 36]), 5 * 36
    return model.eval()


def test_a_narrowed_model_comes_back_from_its_folder(tmp_path):
    model = narrowed()
    module.save(model, small(), tmp_path)
    again = module.load(small(), tmp_path)
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(again(x), model(x))
    assert again[0].out_channels == 5
    assert module.parameters(again) == module.parameters(model) < module.parameters(small())


def test_structure_names_only_what_changed(tmp_path):
    changes = module.structure(narrowed(), small())
    assert changes["modules"] == {
        "0": {"out_channels": 5},
        "1": {"num_features": 5},
        "4": {"in_features": 180},
    }
    assert set(changes["tensors"]) >= {"0.weight", "1.running_mean", "4.weight"}
    assert "4.bias" not in changes["tensors"]
    module.save(small(), small(), tmp_path)
    assert json.loads((tmp_path / "structure.json").read_text()) == {"modules": {}, "tensors": {}}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids).mean(1))


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    model = Tied()
    module.save(model, Tied(), tmp_path)
    again = module.load(Tied(), tmp_path)
    assert again.head.weight is again.embed.weight
    ids = torch.randint(0, 11, (2, 4))
    assert torch.equal(again(ids), model.eval()(ids))
    assert module.ties(model) == (("embed.weight", "head.weight"),)
    assert module.parameters(model) == 66


def test_ties_are_made_again_only_where_the_tensors_agree():
    groups = module.ties(Tied())
    model = Tied()
    model.head.weight = nn.Parameter(model.embed.weight.detach().clone())
    assert module.tie(model, groups)
    assert model.head.weight is model.embed.weight
    model.head.weight = nn.Parameter(torch.zeros(11, 6))
    assert not module.tie(model, groups)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    module.save(nn.Linear(3, 2), nn.Linear(3, 2), tmp_path)
    with pytest.raises(RuntimeError):
        module.load_weights(nn.Linear(4, 2), tmp_path / "weights.safetensors")
