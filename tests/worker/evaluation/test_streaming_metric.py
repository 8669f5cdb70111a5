"""Metric objects, large outputs, rare classes, ragged outputs."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from autotune.errors import ContractError, JobError
from autotune.worker.data import rows
from autotune.worker.evaluation import evaluate, streaming_metric
from autotune.worker.measure import outputs as measure_outputs

TASK = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
g = torch.Generator().manual_seed(0)
def make_model():
    return nn.Linear(4, 3)
def train_data():
    return TensorDataset(torch.randn(60, 4, generator=g), torch.arange(60) % 3)
def eval_data():
    return TensorDataset(torch.randn(640, 4, generator=g), torch.arange(640) % 3)
"""
METRIC = """
class Mean:
    right = rows = 0
    def update(self, output, target):
        self.right += (output.argmax(1) == target).sum().item()
        self.rows += len(target)
    def compute(self):
        return self.right / self.rows
metric = Mean
"""
RARE = (
    TASK.replace("% 3)", "% 16 == 0)")
    .replace("torch.arange", "(torch.arange")
    .replace("== 0)", "== 0).long())")
)


class Always(nn.Module):
    """Says one class, whatever it is asked."""

    def __init__(self, said):
        super().__init__()
        self.said = said

    def forward(self, x):
        return nn.functional.one_hot(torch.tensor(self.said), 3).float().expand(len(x), 3)


def test_a_metric_object_gives_what_the_score_would(load):
    model = load(TASK).make_model()
    plain = evaluate.evaluate(model, load(TASK), "validation")
    streamed = evaluate.evaluate(model, load(TASK + METRIC), "validation", 50)
    assert streamed.quality == pytest.approx(plain.quality)
    assert streamed.per_sample is None
    assert streamed.replicates is not None
    right = np.array(plain.per_sample)
    expected = right[streaming_metric.resamples(320, 0)].mean(1)
    assert streamed.replicates == pytest.approx(tuple(expected))


def test_large_outputs_get_replicates_by_groups_of_rows(load, monkeypatch):
    loaded = load(TASK + METRIC)
    model = loaded.make_model()
    exact = evaluate.evaluate(model, loaded, "validation", 50)
    monkeypatch.setattr(streaming_metric, "KEPT_BYTES", 1000)
    found = [evaluate.evaluate(model, loaded, "validation", size) for size in (7, 50)]
    assert found[0].replicates == found[1].replicates
    assert found[0].quality == exact.quality
    spread = np.std(exact.replicates)
    assert 0.6 * spread < np.std(found[0].replicates) < 1.7 * spread
    assert np.mean(found[0].replicates) == pytest.approx(exact.quality, abs=0.3 * spread)


def test_replicates_by_groups_cover_what_they_should():
    """The 95 % interval of a mean of 0/1 rows holds the truth nearly as often as it says."""
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        metric = streaming_metric.Streamed(_Functions(), 320, trial)
        metric._kept = None
        values = torch.from_numpy((rng.random(320) < 0.8).astype(np.float32))
        metric.add(values, values, 320)
        _, replicates = metric.result()
        low, high = np.quantile(replicates, [0.025, 0.975])
        inside += low <= 0.8 <= high
    assert inside >= 180


class _Functions:
    def new_metric(self):
        return []

    def update(self, meter, output, target):
        meter.append(output)

    def compute(self, meter):
        return float(torch.cat(meter).mean())


def test_few_rows_give_no_replicates(load, monkeypatch):
    monkeypatch.setattr(streaming_metric, "KEPT_BYTES", 10)
    loaded = load(TASK.replace("640", "80") + METRIC)
    assert evaluate.evaluate(loaded.make_model(), loaded, "validation").replicates is None


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("metric = dict\n", "a dict without compute"),
        (METRIC.replace("self.rows += ", "self.nothing += "), r"update\(output, target\) raised"),
        (METRIC.replace("self.right / self.rows", "'high'"), "must return one number"),
    ],
)
def test_a_broken_metric_is_named(load, metric, words):
    loaded = load(TASK + metric)
    model = loaded.make_model()
    with pytest.raises(ContractError, match=words):
        evaluate.evaluate(model, loaded, "validation")


def test_outputs_too_large_for_quality_are_refused_with_the_remedy(load, monkeypatch):
    monkeypatch.setattr(evaluate, "KEPT_BYTES", 1000)
    loaded = load(TASK + "def quality(output, target):\n    return 1.0\n")
    with pytest.raises(ContractError, match=r"needs all outputs at once.*\n.*\n.*metric\(\) with"):
        evaluate.evaluate(loaded.make_model(), loaded, "validation")


def test_batches_shrink_to_what_fits(load, monkeypatch):
    loaded = load(TASK)
    model = loaded.make_model()
    expected = evaluate.evaluate(model, loaded, "validation")
    seen = []
    model.register_forward_hook(lambda m, i, o: seen.append(len(o)))
    monkeypatch.setattr(evaluate, "BATCH_BYTES", 5 * 12)
    assert evaluate.evaluate(model, loaded, "validation").per_sample == expected.per_sample
    assert max(seen) == 5


# -- rare classes -----------------------------------------------------------------------------


def test_a_rare_class_makes_accuracy_balanced(load):
    loaded = load(RARE)
    info = loaded.info
    assert (info.metric, info.binary, info.per_sample, info.rate) == (
        "balanced_accuracy", False, True, True,
    )  # fmt: skip
    majority = evaluate.evaluate(Always(0), loaded, "validation")
    assert majority.quality == pytest.approx(0.5)
    assert np.mean(majority.per_sample) == pytest.approx(0.5)
    assert majority.worst_class_recall == 0.0
    minority = evaluate.evaluate(Always(1), loaded, "validation")
    assert minority.quality == pytest.approx(0.5)


def test_balanced_accuracy_is_the_mean_of_the_recalls(load):
    loaded = load(RARE)
    torch.manual_seed(3)
    model = loaded.make_model()
    scores = evaluate.evaluate(model, loaded, "test", 33)
    said, true = [], []
    for inputs, target in loaded.batches("test"):
        said += model(inputs).argmax(1).tolist()
        true += target.tolist()
    pairs = list(zip(said, true, strict=True))
    recalls = [np.mean([s == t for s, t in pairs if t == c]) for c in (0, 1)]
    assert scores.quality == pytest.approx(np.mean(recalls))
    assert scores.worst_class_recall == pytest.approx(min(recalls))


def test_a_plan_that_always_says_the_majority_is_not_met(load):
    from autotune.stats import non_inferiority

    loaded = load(RARE)

    class Oracle(nn.Module):
        """Right on all but every tenth row."""

        def forward(self, x):
            output = nn.functional.one_hot(self.target, 3).float()
            output[::10] = output[::10].roll(1, 1)
            return output

    good = Oracle()
    good.target = torch.cat([t for _, t in loaded.batches("test")])
    base = evaluate.evaluate(good, loaded, "test", 10_000)
    lazy = evaluate.evaluate(Always(0), loaded, "test")
    found = non_inferiority.quality_drop(lazy, base, 0.01, higher_is_better=True)
    assert found.verdict == "NOT_MET"
    plain = np.mean([float(v > 0) for v in lazy.per_sample])
    assert plain > 0.9  # what plain accuracy would have said of it


def test_a_score_of_ones_own_is_not_balanced(load):
    score = "def score(output, target):\n    return (output.argmax(1) == target).float()\n"
    assert load(RARE + score).info.metric == "score"
    assert evaluate.evaluate(Always(0), load(RARE + score), "validation").quality > 0.9


def test_float_targets_of_a_binary_loss_are_stratified_and_balanced(load):
    text = """
import torch
X = torch.randn(600, 4)
y = (torch.arange(600) % 12 == 0).float().unsqueeze(1)
model = torch.nn.Linear(4, 1)
criterion = torch.nn.BCEWithLogitsLoss()
"""
    loaded = load(text)
    assert loaded.info.metric == "balanced_accuracy"
    share = [
        float(torch.stack([t for _, t in loaded.part(p)]).mean()) for p in ("validation", "test")
    ]
    assert share == pytest.approx([1 / 12, 1 / 12], abs=0.02)
    scores = evaluate.evaluate(nn.Linear(4, 1), loaded, "validation")
    assert scores.worst_class_recall is not None


# -- outputs on disk ----------------------------------------------------------------------------


def test_outputs_are_written_in_chunks_and_read_as_they_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(rows, "KEPT_BYTES", 100)
    values = np.arange(90 * 8, dtype=np.float32).reshape(90, 8)
    with rows.Writer(tmp_path / "o.npz") as writer:
        for start in range(0, 90, 7):
            writer.add("tensor", ("",), [values[start : start + 7]])
    found = rows.load(tmp_path / "o.npz")
    assert isinstance(found.fields[0], rows.Chunks)
    assert (len(found), found.ragged, found.row_bytes) == (90, False, 32)
    assert np.array_equal(found.batch(range(20, 60))[0][0], values[20:60])
    assert np.array_equal(found.batch([88, 1, 40])[0][0], values[[88, 1, 40]])
    monkeypatch.setattr(rows, "KEPT_BYTES", 1 << 20)
    assert np.array_equal(rows.load(tmp_path / "o.npz").fields[0], values)


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), rows.Writer(tmp_path / "o.npz") as writer:  # noqa: PT012
        writer.add("tensor", ("",), [np.ones((2, 3))])
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_recorded_outputs_score_as_the_model_does(load, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "CHUNK_BYTES", 500)
    monkeypatch.setattr(rows, "KEPT_BYTES", 100)
    loaded = load(TASK)
    model = loaded.make_model().eval()
    inputs = rows.Rows("tensor", ("",), (np.stack([x.numpy() for x, _ in loaded.test]),))

    def predict(x):
        with torch.no_grad():
            return model(torch.from_numpy(x)).numpy()

    direct = evaluate.evaluate(model, loaded, "test")
    for fixed in (None, 3):
        measure_outputs.record(predict, inputs, tmp_path / "o.npz", fixed=fixed)
        found = evaluate.score_outputs(loaded, "test", rows.load(tmp_path / "o.npz"), 0)
        assert found.per_sample == direct.per_sample
        assert found.loss == pytest.approx(direct.loss)


def test_ragged_outputs_are_recorded_and_scored(load, tmp_path):
    text = """
import torch
from torch import nn
def make_model():
    return nn.Embedding(9, 5)
def train_data():
    return [(torch.arange(2 + i % 3) % 9, torch.arange(2 + i % 3) % 5) for i in range(200)]
"""
    quality = (
        "def quality(output, target):\n"
        "    right = [(o.argmax(-1) == t).float().mean() for o, t in zip(output, target)]\n"
        "    return float(torch.stack(right).mean())\n"
    )
    loaded, whole = load(text), load(text + quality)
    model = loaded.make_model()
    ragged = [x.numpy() for x, _ in loaded.test]
    inputs = rows.Rows("tensor", ("",), (ragged,))

    def predict(x):
        with torch.no_grad():
            return model(torch.from_numpy(x)).numpy()

    measure_outputs.record(predict, inputs, tmp_path / "o.npz", fixed=None)
    outputs = rows.load(tmp_path / "o.npz")
    assert outputs.ragged
    direct = evaluate.evaluate(model, loaded, "test")
    assert evaluate.score_outputs(loaded, "test", outputs, 0).per_sample == direct.per_sample
    found = evaluate.score_outputs(whole, "test", outputs, 0)
    assert found.quality == pytest.approx(direct.quality)
    assert len(found.replicates) == streaming_metric.REPLICATES


def test_a_state_without_a_batch_in_front_is_not_recorded(tmp_path):
    inputs = rows.Rows("tensor", ("",), (np.ones((10, 4), np.float32),))
    state = np.zeros((2, 1, 3), np.float32)
    measure_outputs.record(lambda x: (x, state), inputs, tmp_path / "o.npz", fixed=5)
    found = rows.load(tmp_path / "o.npz")
    assert (found.kind, len(found.fields), len(found)) == ("tuple", 1, 10)
    with pytest.raises(JobError, match="first dimension must be the batch"):
        measure_outputs.record(lambda x: state, inputs, tmp_path / "o.npz", fixed=5)


def test_a_language_models_evaluation_stays_small(load, tmp_path):
    """1/20 of 50,000 tokens over 32,000 words; the whole is a scenario."""
    text = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.o = nn.Embedding(32000, 4), nn.Linear(4, 32000)
    def forward(self, x):
        return self.o(self.e(x))
def make_model():
    return Net()
def train_data():
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 32000, (200, 26), generator=g)
    return torch.utils.data.TensorDataset(x[:, :-1], x[:, 1:])
def eval_data():
    return train_data()
"""
    loaded = load(text)
    model = loaded.make_model().eval()
    batch = []
    model.register_forward_hook(lambda m, i, o: batch.append(o.numel() * 4))
    scores = evaluate.evaluate(model, loaded, "validation")
    assert scores.loss == pytest.approx(math.log(32000), rel=0.1)
    assert max(batch) <= evaluate.BATCH_BYTES
