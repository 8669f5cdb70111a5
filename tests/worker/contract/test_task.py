from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from autotune.errors import ContractError
from autotune.records.task import TaskSpec
from autotune.worker.contract import task
from autotune.worker.evaluation.evaluate import evaluate
from autotune.worker.user_file import run

MODELS = Path(__file__).parents[2] / "scenarios" / "models"

HEAD = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
def make_model():
    return nn.Linear(4, 3)
def train_data():
    return TensorDataset(torch.randn(60, 4), torch.arange(60) % 3)
"""


def train(loaded, epochs=3, lr=1e-2):
    torch.manual_seed(0)
    model = loaded.make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr)
    loader = DataLoader(loaded.train, 32, shuffle=True, collate_fn=loaded.collate)
    for _ in range(epochs):
        for inputs, target in loader:
            optimizer.zero_grad()
            loaded.loss(loaded.call(model, inputs), target).backward()
            optimizer.step()
    return model


@pytest.mark.parametrize(
    ("name", "floor"),
    [
        ("script_iris_numpy", 0.75),
        ("script_cancer_bce", 0.9),
        ("tuple_digit_halves", 0.85),
        ("tuple_iris_lists", 0.75),
        ("dict_labels_attention", 0.7),
        ("dict_diabetes_numpy", None),
    ],
)
def test_models_of_each_form_learn(name, floor):
    before = sorted(MODELS.iterdir())
    loaded = task.load(TaskSpec(kind="file", path=str(MODELS / f"{name}.py")))
    scores = evaluate(train(loaded, loaded.info.epochs), loaded, "test")
    kind = {"script": "tensor", "tuple": "tuple", "dict": "dict"}[name.partition("_")[0]]
    assert loaded.info.input_kind == kind
    assert scores.rows == loaded.info.test_rows
    if floor is None:
        assert scores.quality < 0.75  # mean absolute error: less is better
        assert not loaded.higher_is_better
    else:
        assert scores.quality > floor
    assert sorted(MODELS.iterdir()) == before


def test_parts_are_apart_and_cover_the_data(load):
    loaded = load(HEAD)
    rows = [part.rows for part in (loaded.train, loaded.validation, loaded.test)]
    assert sorted(np.concatenate(rows)) == list(range(60))
    assert (loaded.info.train_rows, loaded.info.validation_rows, loaded.info.test_rows) == (
        48,
        6,
        6,
    )
    assert any("random split leaks" in text for text in loaded.info.warnings)


def test_random_data_is_the_same_in_each_load(load):
    one, two = load(HEAD), load(HEAD)
    assert torch.equal(one.validation[0][0], two.validation[0][0])
    assert not torch.equal(one.validation[0][0], load(HEAD, seed=1).validation[0][0])


def test_loading_leaves_the_random_state_alone(load):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load(HEAD)
    assert torch.equal(torch.rand(1), expected)


def test_args_and_siblings_and_no_traces(load, tmp_path):
    (tmp_path / "sibling_of_model.py").write_text("width = 3\n")
    text = HEAD + "import sys, sibling_of_model\nepochs = int(sys.argv[1])\n"
    assert load(text, args=("7",)).info.epochs == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.py", "sibling_of_model.py"]


def test_main_guard_is_not_run(load):
    load(HEAD + "if __name__ == '__main__':\n    raise SystemExit(1)\n")


def test_dataclasses_with_string_annotations_work(load):
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n" + HEAD
    assert load(text + "@dataclass\nclass A:\n    x: int = 1\n").info.name == "model"


def test_source_of_a_contract_file_is_its_text(load):
    assert load(HEAD).source == HEAD


def test_module_level_model_is_copied_and_drawn_anew(load):
    loaded = load(HEAD.replace("def make_model():\n    return", "model ="))
    torch.manual_seed(0)
    one, other = loaded.make_model(), loaded.make_model()
    torch.manual_seed(0)
    again = loaded.make_model()
    assert not torch.equal(one.weight, other.weight)
    assert torch.equal(one.weight, again.weight)


def test_module_level_model_keeps_its_weights_when_pretrained(load):
    loaded = load(HEAD.replace("def make_model():\n    return", "model ="), pretrained=True)
    assert torch.equal(loaded.make_model().weight, loaded.make_model().weight)


def test_pretrained_flag_changes_no_rows(load):
    text = HEAD.replace("train_data", "eval_data").replace("60", "240")
    one, two = load(text), load(text, pretrained=True)
    assert one.info.calibration_rows == two.info.calibration_rows == 80
    assert one.validation.rows.tolist() == two.validation.rows.tolist()
    assert two.info.pretrained
    assert one.train is None


def test_test_data_of_the_users_own(load):
    text = (
        HEAD
        + "def test_data():\n"
        + "    return TensorDataset(torch.ones(40, 4), torch.zeros(40).long())\n"
    )
    loaded = load(text)
    assert loaded.info.validation_rows == 12
    assert loaded.info.test_rows == 40


def test_ragged_samples_need_a_collate_and_work_with_one(load):
    data = (
        "import torch\nfrom torch import nn\n"
        "class Bag(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.e = nn.EmbeddingBag(9, 2, padding_idx=0)\n"
        "    def forward(self, x):\n        return self.e(x)\n"
        "def make_model():\n    return Bag()\n"
        "def train_data():\n"
        "    return [(torch.arange(1, 3 + i % 4), i % 2) for i in range(60)]\n"
    )
    loaded = load(data)
    assert loaded.info.ragged
    with pytest.raises(ContractError, match="pads them"):
        loaded.collate([loaded.train[row] for row in range(8)])
    assert evaluate(loaded.make_model(), loaded, "validation").rows == 6
    padded = load(
        data + "def collate(samples):\n    X, y = zip(*samples)\n"
        "    return nn.utils.rnn.pad_sequence(X, batch_first=True), torch.tensor(y)\n"
    )
    inputs, target = padded.collate([padded.train[row] for row in range(8)])
    assert inputs.shape == (8, 5)
    assert target.shape == (8,)
    assert padded.input_arrays(inputs)[0].dtype == np.int64


def test_labels_stay_out_of_what_is_deployed(load):
    loaded = task.load(TaskSpec(kind="file", path=str(MODELS / "dict_labels_attention.py")))
    inputs, target = loaded.collate([loaded.train[row] for row in range(4)])
    output = loaded.call(loaded.make_model(), inputs)
    assert loaded.loss(output, target) is not None
    assert torch.equal(inputs["labels"], target)
    assert loaded.info.input_names == ("pixel_rows",)
    assert [a.shape for a in loaded.input_arrays(inputs)] == [(4, 8, 8)]
    arguments, named = loaded.model_inputs(inputs)
    assert arguments == ()
    assert list(named) == ["pixel_rows"]


def test_a_rare_class_is_warned_of(load):
    text = HEAD.replace("torch.arange(60) % 3", "(torch.arange(60) % 12 == 0).long()")
    assert any("class 1" in w and "worst class" in w for w in load(text).info.warnings)


def test_default_losses_and_scores():
    from autotune.worker.contract import default_metrics

    logits, classes = torch.randn(5, 3, 7), torch.randint(0, 3, (5, 7))
    expected = nn.functional.cross_entropy(logits, classes)
    assert torch.allclose(default_metrics.loss(logits, classes), expected)
    assert torch.allclose(default_metrics.loss(logits.movedim(1, -1), classes), expected)
    right = (logits.argmax(1) == classes).float().mean(1)
    assert torch.allclose(default_metrics.score(logits, classes), right)
    assert torch.equal(
        default_metrics.score(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1])),
        torch.tensor([1.0, 0.0]),
    )
    output, target = torch.randn(6, 1), torch.randn(6)
    assert torch.allclose(
        default_metrics.loss(output, target), (output[:, 0] - target).square().mean()
    )
    assert torch.allclose(default_metrics.score(output, target), -(output[:, 0] - target).square())


def test_ignored_labels_count_for_nothing():
    from autotune.worker.contract import default_metrics

    logits = torch.eye(2).repeat(2, 1, 1)  # argmax over classes: token 0 -> 0, token 1 -> 1
    target = torch.tensor([[0, -100], [1, 1]])
    assert default_metrics.score(logits, target).tolist() == [1.0, 0.5]


# -- plain scripts -------------------------------------------------------------------------

SCRIPT = """
import torch
from pathlib import Path
torch.manual_seed(0)
X = torch.randn(60, 4)
size = X.shape[1]
y = (X[:, 0] > 0).long()
print(X.shape)
unused = y.sum()
model = torch.nn.Sequential(torch.nn.Linear(size, 8))
model.append(torch.nn.Linear(8, 2))
criterion = torch.nn.CrossEntropyLoss()
epochs = 3
Path("written").write_text("in a scratch folder")
for _ in range(epochs):
    raise SystemExit("the loop is not run")
"""


def test_a_script_stops_when_the_four_are_bound(load, tmp_path):
    loaded = load(SCRIPT)
    assert loaded.info.form == "script"
    assert loaded.info.epochs == 3
    assert loaded.info.classes == 2
    even = loaded.loss(torch.zeros(2, 2), torch.zeros(2).long())
    assert even.item() == pytest.approx(0.6931, abs=1e-3)
    assert not (tmp_path / "written").exists()


def test_the_source_of_a_script_makes_its_model_and_no_more(load):
    text = load(SCRIPT).source
    assert text is not None
    names: dict = {}
    exec(text, names)
    assert len(names["model"]) == 2
    assert "X = torch.randn" in text  # the model's width comes from the data
    assert "unused" not in text
    assert "print" not in text
    assert "criterion" not in text
    assert "y = " not in text


def test_the_source_of_a_script_drops_data_that_the_model_does_not_need(load, examples):
    loaded = task.load(TaskSpec(kind="file", path=str(examples / "plain_script.py")))
    assert loaded.source is not None
    assert "sklearn" not in loaded.source
    exec(loaded.source, names := {})
    loaded.make_model().load_state_dict(names["model"].state_dict())


def test_a_script_that_rebinds_its_data_later_is_warned(load):
    text = SCRIPT.replace("epochs = 3", "epochs = 3\nX = X / 2")
    assert any("changes X" in text for text in load(text).info.warnings)


def test_the_error_of_a_script_that_opens_a_file_names_the_scratch_folder(load):
    with pytest.raises(ContractError, match=r"scratch folder: open Path\(__file__\)"):
        load("open('data.csv')\n" + SCRIPT)


def test_a_pretrained_script_is_run_as_a_whole(load):
    text = SCRIPT.partition("epochs = 3")[0] + (
        "with torch.no_grad():\n    model[0].weight.fill_(2.0)\npretrained = True\n"
    )
    loaded = load(text)
    assert loaded.info.pretrained
    assert (loaded.trained_model()[0].weight == 2).all()
    assert not (loaded.make_model()[0].weight == 2).all()


def test_is_script():
    def is_script(text):
        import ast

        return run.is_script(ast.parse(text))

    four = "model = X = y = criterion = 1\n"
    assert is_script(four)
    assert is_script("X, (y, z) = 1, (2, 3)\nmodel: int = 1\nfrom a import b as loss_fn\n")
    assert not is_script(four + "def train_data(): ...\n")
    assert not is_script(four + "make_model = 1\n")
    assert not is_script("def f():\n    model = X = y = criterion = 1\n")


# -- pickled tasks and the user's own functions ----------------------------------------------


def test_a_pickled_task(tmp_path):
    import cloudpickle

    data = [(torch.ones(4), 1.5)] * 40
    names = {"name": "mine", "make_model": lambda: nn.Linear(4, 1), "train_data": lambda: data}
    path = tmp_path / "task.pkl"
    path.write_bytes(cloudpickle.dumps(names))
    loaded = task.load(TaskSpec(kind="pickle", path=str(path)))
    assert (loaded.info.form, loaded.info.name, loaded.source) == ("object", "mine", None)
    assert loaded.info.metric == "neg_mse"
    assert evaluate(loaded.make_model(), loaded, "validation").rows == 4


def test_a_metric_object(load):
    loaded = load(
        HEAD + "class Count:\n    n = 0\n    def update(self, o, t): self.n += len(t)\n"
        "    def compute(self): return self.n / 2\ndef metric():\n    return Count()\n"
    )
    assert not loaded.info.per_sample
    assert loaded.info.metric == "metric"
    assert evaluate(loaded.make_model(), loaded, "validation").quality == 3.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = 0", "whole number of at least 1"),
        ("higher_is_better = 'no'", "higher_is_better must be True or False"),
        ("recipe = {'learning_rate': 1}", "some of the keys optimizer, lr"),
        ("recipe = {'optimizer': 'adamm'}", "adamm"),
        ("loss = 3", "loss must be a function"),
        ("def eval_data():\n    pass", r"eval_data\(\) returned None"),
        ("def eval_data():\n    return torch.utils.data.DataLoader([1])", "DataLoader"),
        ("def eval_data():\n    return torch.ones(3), torch.ones(3)", "a tuple of arrays"),
        ("def eval_data():\n    return [(torch.ones(4), 1)]", "none is left for test"),
        ("def eval_data():\n    return 1 / 0", r"ZeroDivisionError.*\n.*line 10: `return 1 / 0`"),
    ],
)
def test_wrong_settings(load, text, message):
    with pytest.raises(ContractError, match=message):
        load(HEAD + text + "\n")
