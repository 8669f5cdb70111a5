"""Checkpoints as people have them: nested, prefixed, incomplete, pickled."""

import argparse

import pytest
import torch
from safetensors.torch import save_model
from torch import nn

from autotune.errors import ContractError
from autotune.worker.contract import weights_file


class Net(nn.Module):
    def __init__(self, wide=8):
        super().__init__()
        self.body, self.norm, self.head = (
            nn.Linear(4, wide),
            nn.BatchNorm1d(wide),
            nn.Linear(wide, 3),
        )

    def forward(self, x):
        return self.head(self.norm(self.body(x)))


class Wrapped(nn.Module):
    """A model whose own names start with one of the prefixes."""

    def __init__(self):
        super().__init__()
        self.model = nn.Linear(4, 3)


@pytest.fixture
def trained():
    torch.manual_seed(1)
    return Net()


def same(model, other):
    mine, theirs = model.state_dict(), other.state_dict()
    return all(torch.equal(mine[name], theirs[name]) for name in theirs)


def load(path, model=None):
    model = model or Net()
    return weights_file.load_into(model, path), model


def prefixed(model, prefix):
    return {prefix + name: value for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("wrap", "nest", "stripped"),
    [
        (lambda m: m.state_dict(), None, None),
        (lambda m: {"state_dict": m.state_dict(), "optimizer": {"lr": 1}}, "state_dict", None),
        (lambda m: {"state_dict": prefixed(m, "module."), "epoch": 3}, "state_dict", "'module.'"),
        (lambda m: {"model": prefixed(m, "_orig_mod.module.")}, "model", "'_orig_mod.'"),
        (lambda m: prefixed(m, "model."), None, "'model.'"),
        (lambda m: {"ema": {"module": m.state_dict()}, "decay": 0.9}, "ema.module", None),
        (lambda m: prefixed(m, "module.model._orig_mod."), None, "'_orig_mod.'"),
    ],
)  # fmt: skip
def test_a_state_dict_is_found_and_its_prefixes_come_off(tmp_path, trained, wrap, nest, stripped):
    path = tmp_path / "c.pt"
    torch.save(wrap(trained), path)
    notes, model = load(path)
    assert same(model, trained)
    text = "\n".join(notes)
    assert (f"under {nest!r}" in text) == (nest is not None)
    assert ("stripped" in text) == (stripped is not None)
    assert (stripped or "") in text


def test_safetensors_with_tied_weights(tmp_path):
    def tied():
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        return model

    model = tied()
    save_model(model, str(tmp_path / "c.bin"))  # its header tells, not its name
    notes, twin = load(tmp_path / "c.bin", tied())
    assert notes == ()
    assert same(twin, model)
    assert twin[1].weight is twin[0].weight


def test_prefixes_that_are_the_models_own_stay(tmp_path):
    model = Wrapped()
    torch.save(model.state_dict(), tmp_path / "c.pt")
    notes, twin = load(tmp_path / "c.pt", Wrapped())
    assert notes == ()
    assert same(twin, model)


def test_missing_and_unexpected_names_are_listed(tmp_path, trained):
    state = trained.state_dict()
    state["decoder.weight"] = state.pop("head.weight")
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(ContractError) as caught:
        load(tmp_path / "c.pt")
    assert "1 unexpected: decoder.weight" in str(caught.value)
    assert "1 of 9: head.weight" in str(caught.value)


def test_other_shapes_are_named(tmp_path):
    torch.save(Net(16).state_dict(), tmp_path / "c.pt")
    with pytest.raises(ContractError, match=r"body.weight \[16, 4\] where the model has \[8, 4\]"):
        load(tmp_path / "c.pt")


def test_a_pickled_module_is_refused_with_the_two_lines(tmp_path, trained):
    torch.save(trained, tmp_path / "net.pt")
    with pytest.raises(ContractError) as caught:
        load(tmp_path / "net.pt")
    text = str(caught.value)
    assert "is a pickled module" in text
    assert 'model = torch.load("net.pt", weights_only=False)' in text
    assert 'torch.save(model.state_dict(), "net-weights.pt")' in text


def test_the_two_lines_convert_it(tmp_path, trained, monkeypatch):
    torch.save(trained, tmp_path / "net.pt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ContractError) as caught:
        load(tmp_path / "net.pt")
    lines = str(caught.value).partition("fix it with:\n")[2].splitlines()
    exec("\n".join(line.strip() for line in lines), {"torch": torch})
    assert same(load(tmp_path / "net-weights.pt")[1], trained)


def test_what_else_a_file_may_be(tmp_path, trained):
    torch.save(
        {"state_dict": trained.state_dict(), "args": argparse.Namespace(a=1)}, tmp_path / "n.pt"
    )
    with pytest.raises(ContractError, match=r"more than tensors .*: argparse.Namespace"):
        load(tmp_path / "n.pt")
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(ContractError, match=r"neither a safetensors file nor one that torch.save"):
        load(tmp_path / "text.pt")
    torch.save({"epoch": 3, "loss": [1.0]}, tmp_path / "e.pt")
    with pytest.raises(
        ContractError, match="holds no state dict\n  found:   the keys 'epoch', 'loss'"
    ):
        load(tmp_path / "e.pt")
    with pytest.raises(ContractError, match=r"no such checkpoint file\n  found:   e\.pt, n\.pt"):
        load(tmp_path / "missing.pt")


def test_legacy_files_are_read_too(tmp_path, trained):
    torch.save(trained.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same(load(tmp_path / "old.pt")[1], trained)
    torch.save(trained, tmp_path / "net.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ContractError):
        load(tmp_path / "net.pt")
