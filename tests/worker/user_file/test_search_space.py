"""``space(trial)``: dimensions found, conditions seen, values handed on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import ContractError
from autotune.records.task import TaskSpec
from autotune.worker.contract import task
from autotune.worker.user_file.search_space import UserSpace


def hook(space: Callable[..., Any], make: Callable[..., Any], train: Any = None) -> UserSpace:
    return UserSpace({"space": space, "make_model": make, "train": train}, "model.py", None)


def nested(trial: Any) -> dict[str, Any]:
    kind = trial.suggest_categorical("kind", ["cnn", "mlp", "rnn"])
    params = {"kind": kind, "rate": trial.suggest_float("rate", 1e-3, 1e-1, log=True)}
    if kind in ("mlp", "rnn"):
        params["width"] = trial.suggest_int("width", 16, 64, step=16)
    if kind == "cnn":
        params["blocks"] = trial.suggest_int("blocks", 1, 3)
    if kind == "rnn":
        cell = trial.suggest_categorical("cell", ["gru", "lstm"])
        params["cell"] = cell
        if cell == "lstm":
            params["gate"] = trial.suggest_float("gate", 0.0, 1.0)
    return params


def test_conditions_are_found_by_following_every_choice() -> None:
    nodes = {n.dim.name: n for n in hook(nested, lambda **params: params).nodes()}
    assert (nodes["kind"].parent, nodes["rate"].parent) == (None, None)
    assert (nodes["width"].parent, nodes["width"].values) == ("kind", ("mlp", "rnn"))
    assert (nodes["blocks"].parent, nodes["blocks"].values) == ("kind", ("cnn",))
    assert (nodes["cell"].parent, nodes["cell"].values) == ("kind", ("rnn",))
    assert (nodes["gate"].parent, nodes["gate"].values) == ("cell", ("lstm",))
    assert nodes["width"].dim.step == 16
    assert nodes["rate"].dim.log


def test_what_the_hook_makes_of_values_reaches_the_model() -> None:
    def space(trial: Any) -> dict[str, Any]:
        width = trial.suggest_int("width", 8, 64)
        return {"widths": [width, width // 2]}

    found = hook(space, lambda widths=(64, 32): widths)
    assert found.params({"width": 20}) == {"widths": [20, 10]}
    assert found.params({}) == {}, "the baseline is make_model() as it stands"
    assert found.defaults(found.nodes()) == {}


def test_without_a_return_the_suggestions_are_the_values() -> None:
    def space(trial: Any) -> None:
        trial.suggest_int("width", 8, 64)

    assert hook(space, lambda width=32: width).params({"width": 9}) == {"width": 9}


def test_the_baseline_has_the_makers_own_defaults() -> None:
    def space(trial: Any) -> None:
        trial.suggest_int("width", 8, 64)
        trial.suggest_float("dropout", 0.0, 0.5)

    some = hook(space, lambda width=32, dropout=0.1: None)
    assert some.defaults(some.nodes()) == {"width": 32, "dropout": 0.1}
    needed = hook(space, lambda width, dropout=0.1: None)
    assert needed.defaults(needed.nodes()) == {"width": 36, "dropout": 0.1}


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (lambda trial: {"w": trial.suggest_int("w", 9, 3)}, "9 to 3 is not a range"),
        (lambda trial: {"w": trial.suggest_categorical("w", [None])}, "must be numbers, texts"),
        (lambda trial: trial.suggest_int("width", 1, 3), "it returned a int"),
        (lambda trial: {"width": object()}, "only plain values"),
        (lambda trial: {"depth": 3}, "returns depth, which make_model() does not take"),
        (lambda trial: trial.suggest_uniform("width", 1, 3), "suggest_uniform"),
    ],
)
def test_a_wrong_hook_is_reported(space: Callable[..., Any], says: str) -> None:
    with pytest.raises(ContractError, match="space") as caught:
        hook(space, lambda width=3: width).nodes()
    assert says in str(caught.value)


def test_a_space_that_is_no_function() -> None:
    with pytest.raises(ContractError, match="space must be a function"):
        UserSpace({"space": 3}, "model.py", None)


def test_a_width_of_one_is_offered_and_handed_on_beside_the_rest() -> None:
    found = hook(None, lambda width=1.0, depth=2: (width, depth))
    assert found.fields() == {"space": (), "params": {}, "width": 1.0}
    assert found.params({"width": 0.5}) == {"width": 0.5}

    def space(trial: Any) -> dict[str, Any]:
        return {"depth": trial.suggest_int("depth", 1, 3) + 1}

    both = hook(space, lambda width=1.0, depth=2: (width, depth))
    assert both.fields()["width"] == 1.0
    assert both.params({"width": 0.5, "depth": 3}) == {"depth": 4, "width": 0.5}
    assert both.params({"width": 0.5}) == {"width": 0.5}


def test_another_default_or_an_own_dimension_is_no_width() -> None:
    def space(trial: Any) -> dict[str, Any]:
        return {"width": trial.suggest_float("width", 0.5, 2.0)}

    assert hook(None, lambda width=1: width).fields()["width"] is None
    assert hook(None, lambda width=64.0: width).fields()["width"] is None
    assert hook(None, lambda width: width).fields()["width"] is None
    mine = hook(space, lambda width=1.0: width)
    assert mine.fields()["width"] is None
    assert mine.params({"width": 1.5}) == {"width": 1.5}


def test_a_narrow_model_is_made_and_its_source_makes_it_again(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(
        "import torch\n"
        "def make_model(width=1.0):\n"
        "    return torch.nn.Linear(2, round(8 * width))\n"
        "def eval_data():\n"
        "    return torch.utils.data.TensorDataset(torch.zeros(60, 2), torch.zeros(60).long())\n"
    )
    loaded = task.load(TaskSpec(kind="file", path=str(path), params={"width": 0.5}))
    assert loaded.info.width == 1.0
    assert loaded.make_model().out_features == 4
    again: dict[str, Any] = {}
    exec(loaded.source or "", again)
    assert again["make_model"]().out_features == 4
