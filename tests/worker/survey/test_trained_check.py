"""Trained weights are found before anything trains over them; fresh ones are not accused."""

import functools

import pytest

from autotune.errors import ContractError
from autotune.worker.survey import trained_check
from tests.support import tasks

DATA = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
g = torch.Generator().manual_seed(0)
x = torch.randn(400, 6, generator=g)
y = (x[:, :3] + 0.1 * torch.randn(400, 3, generator=g)).argmax(1)
def train_data():
    return TensorDataset(x, y)
TRAINED = torch.cat([torch.eye(3), torch.zeros(3, 3)], 1)
"""
FRESH = "def make_model():\n    return nn.Linear(6, 3)\n"
TRAINED = (
    "def make_model():\n    model = nn.Linear(6, 3)\n    with torch.no_grad():\n"
    "        model.weight.copy_(TRAINED)\n        model.bias.zero_()\n    return model\n"
)
MODULE = TRAINED + "model = make_model()\ndel make_model\n"
FLOATS = "y = (x[:, :2].sum(1, keepdim=True) * 2 + 1).float()\n"
REGRESSOR = (
    "def make_model():\n    model = nn.Linear(6, 1)\n    with torch.no_grad():\n"
    "        model.weight.copy_(torch.tensor([[2., 2., 0., 0., 0., 0.]]))\n"
    "        model.bias.fill_(1.)\n    return model\n"
)


@pytest.fixture
def inspected(tmp_path):
    return functools.partial(tasks.inspected, tmp_path)


@pytest.mark.parametrize("text", [TRAINED, MODULE, FLOATS + REGRESSOR])
def test_a_trained_model_stops_the_run(inspected, text):
    with pytest.raises(ContractError) as caught:
        inspected(DATA + text)
    lines = str(caught.value).splitlines()
    assert lines[0] == "model.py: looks trained: pass --pretrained or --retrain"
    assert "before any training, chance is" in lines[1]


@pytest.mark.parametrize("spec", [{"retrain": True}, {"pretrained": True}, {"pretrained": False}])
def test_whoever_says_what_is_meant_is_believed(inspected, spec):
    info = inspected(DATA + TRAINED, **spec).info
    assert info.pretrained == bool(spec.get("pretrained"))


def test_the_file_may_say_it(inspected):
    assert not inspected(DATA + TRAINED + "pretrained = False\n").info.pretrained
    assert inspected(DATA + TRAINED + "pretrained = True\n").info.pretrained


@pytest.mark.parametrize("text", [FRESH, FRESH.replace("3)", "1)").join([FLOATS, ""])])
def test_a_fresh_model_is_none(inspected, text):
    assert not inspected(DATA + text).info.pretrained


@pytest.mark.parametrize("make", ["torch.manual_seed(4)\n    return", "return"])
def test_better_than_chance_is_not_trained(inspected, make):
    """Labels that a random direction tells apart well: every seed beats chance, none was taught."""
    text = (
        DATA
        + "y = (x[:, 0] > 0).long()\nx = x[:, :1]\n"
        + (f"def make_model():\n    {make} nn.Linear(1, 2)\n")
    )
    for seed in range(4):
        inspected(text, seed=seed)


def test_a_text_model_is_compared_by_its_tokens(load):
    text = (
        "import torch\nfrom torch import nn\n"
        "class Copy(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.e = nn.Embedding(7, 7)\n        self.e.weight.data = 5 * torch.eye(7)\n"
        "    def forward(self, x):\n        return self.e(x)\n"
        "def make_model():\n    return Copy()\n"
        "def train_data():\n"
        "    g = torch.Generator().manual_seed(0)\n"
        "    x = torch.randint(0, 7, (60, 5), generator=g)\n"
        "    return torch.utils.data.TensorDataset(x, x)\n"
    )
    loaded = load(text)
    found = trained_check.quality(loaded.given_model(), loaded)
    assert found is not None
    assert found.clear
    assert found.value == 1.0
    with pytest.raises(ContractError, match="looks trained"):
        trained_check.check(loaded)
