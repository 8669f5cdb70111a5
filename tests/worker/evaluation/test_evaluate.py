import numpy as np
import pytest
import torch
from torch import nn

from autotune.errors import ContractError, JobError
from autotune.records.job import Score
from autotune.worker.channel import NullChannel
from autotune.worker.data import batch_tree, rows
from autotune.worker.evaluation import evaluate, streaming_metric

TASK = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.drop = nn.Linear(4, 3), nn.BatchNorm1d(4), nn.Dropout(0.5)
    def forward(self, x):
        return self.fc(self.drop(self.norm(x)))
def make_model():
    return Net()
def train_data():
    return TensorDataset(torch.randn(100, 4), torch.arange(100) % 3)
def eval_data():
    return TensorDataset(torch.randn(90, 4), torch.arange(90) % 3)
"""
QUALITY = "def quality(output, target):\n    return (output.argmax(1) == target).float().mean()\n"


def outputs_of(model, loaded, part):
    model.eval()
    with torch.no_grad():
        found = [loaded.call(model, inputs) for inputs, _ in loaded.batches(part)]
    return rows.Rows("tensor", ("",), (torch.cat(found).numpy(),))


def test_batch_size_changes_nothing_and_modes_come_back(load):
    loaded = load(TASK)
    model = loaded.make_model()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, many = (evaluate.evaluate(model, loaded, "validation", size) for size in (7, 256))
    assert one.per_sample == many.per_sample
    assert one.loss == pytest.approx(many.loss)
    assert one.rows == 45
    assert one.quality == pytest.approx(np.mean(one.per_sample))
    assert (model.training, model.norm.training, model.drop.training) == (True, False, True)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_recorded_outputs_score_as_the_model_does(load):
    loaded = load(TASK)
    model = loaded.make_model()
    direct = evaluate.evaluate(model, loaded, "test")
    recorded = outputs_of(model, loaded, "test")
    assert evaluate.score_outputs(loaded, "test", recorded, 0) == direct


def test_worst_class_recall(load):
    class Always(nn.Module):
        def forward(self, x):
            return torch.tensor([0.0, 1.0, 0.0]).expand(len(x), 3)

    scores = evaluate.evaluate(Always(), load(TASK), "validation")
    assert scores.worst_class_recall == 0.0
    assert scores.balanced_accuracy == pytest.approx(1 / 3)
    assert scores.quality == pytest.approx(1 / 3)


def test_quality_alone_gives_paired_replicates(load):
    loaded = load(TASK + QUALITY)
    model = loaded.make_model()
    scores = evaluate.evaluate(model, loaded, "validation", 16)
    assert scores.per_sample is None
    assert scores.replicates is not None
    assert len(scores.replicates) == streaming_metric.REPLICATES
    plain = evaluate.evaluate(model, load(TASK), "validation")
    right = np.array(plain.per_sample)
    picked = streaming_metric.resamples(45, 0)
    assert scores.quality == pytest.approx(plain.quality)
    assert scores.replicates == pytest.approx(tuple(right[picked].mean(1)))


def test_resamples_depend_on_seed_and_rows_alone():
    assert (streaming_metric.resamples(20, 3) == streaming_metric.resamples(20, 3)).all()
    assert (streaming_metric.resamples(20, 3) != streaming_metric.resamples(20, 4)).any()


def test_named_and_several_outputs_can_be_recorded(load):
    loaded = load(
        TASK
        + "def score(output, target):\n    return (output.logits.argmax(1) == target).float()\n"
        "def loss(output, target):\n"
        "    return nn.functional.cross_entropy(output['logits'], target)\n"
    )
    model = loaded.make_model()
    plain = outputs_of(model, loaded, "validation")
    named = rows.Rows("dict", ("other", "logits"), (np.zeros(45), plain.fields[0]))
    expected = evaluate.score_outputs(load(TASK), "validation", plain, 0)
    assert evaluate.score_outputs(loaded, "validation", named, 0).quality == expected.quality
    several = rows.Rows("tuple", ("", ""), (plain.fields[0], np.zeros(45)))
    assert evaluate.score_outputs(load(TASK), "validation", several, 0).quality == expected.quality


def test_ragged_outputs_are_scored_one_by_one(load):
    loaded = load(TASK)
    plain = outputs_of(loaded.make_model(), loaded, "validation")
    ragged = rows.Rows("tensor", ("",), (list(plain.fields[0]),))
    expected = evaluate.score_outputs(loaded, "validation", plain, 0)
    assert evaluate.score_outputs(loaded, "validation", ragged, 0).per_sample == expected.per_sample


def test_a_wrong_number_of_rows_is_refused(load):
    loaded = load(TASK)
    few = rows.Rows("tensor", ("",), (np.zeros((3, 3), np.float32),))
    with pytest.raises(ContractError, match="3 rows of outputs for the 45 rows of validation"):
        evaluate.score_outputs(loaded, "validation", few, 0)


def test_a_model_that_gives_nan_is_a_failure_named_nan(load):
    class Broken(nn.Module):
        def forward(self, x):
            return x[:, :3] * float("nan")

    loaded = load(TASK)
    with pytest.raises(JobError, match="loss over 45 rows is nan") as caught:
        evaluate.evaluate(Broken(), loaded, "validation")
    assert caught.value.kind == "nan"
    recorded = rows.Rows("tensor", ("",), (np.full((45, 3), np.nan, np.float32),))
    assert evaluate.score_outputs(loaded, "validation", recorded, 0).loss is None


def test_a_quality_that_is_nan_is_a_failure(load):
    loaded = load(TASK + "def quality(output, target):\n    return float('nan')\n")
    with pytest.raises(JobError, match="quality over 45 rows is nan"):
        evaluate.evaluate(loaded.make_model(), loaded, "validation")


def test_named_tuples_keep_their_names():
    from typing import NamedTuple

    class Two(NamedTuple):
        a: torch.Tensor
        b: torch.Tensor

    two = evaluate.to(Two(torch.ones(2), torch.zeros(2)), "cpu")
    assert isinstance(two, Two)
    assert isinstance(batch_tree.take(two, np.array([0])), Two)


def test_the_score_job(load, tmp_path):
    loaded = load(TASK)
    rows.save(tmp_path / "out.npz", outputs_of(loaded.make_model(), loaded, "test"))
    job = Score(task=loaded.spec, part="test", outputs="out.npz")
    scored = evaluate.run(job, tmp_path, NullChannel())
    assert scored.scores.rows == 45


def test_default_losses_are_left_out_where_they_do_not_fit(load):
    """A detector with a quality of its own needs no loss to be scored."""

    class Wide(nn.Module):
        def forward(self, x):
            return {"boxes": torch.ones(len(x), 2, 2, 2)}

    loaded = load(TASK + "def quality(output, target):\n    return float(output['boxes'].mean())\n")
    scores = evaluate.evaluate(Wide(), loaded, "validation")
    assert (scores.quality, scores.loss, scores.worst_class_recall) == (1.0, None, None)


def test_a_loss_of_ones_own_that_breaks_the_contract_is_reported(load):
    loaded = load(TASK + "def loss(output, target):\n    return output\n")
    with pytest.raises(ContractError, match="one number, the mean over the batch"):
        evaluate.evaluate(loaded.make_model(), loaded, "validation")
