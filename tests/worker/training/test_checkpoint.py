"""A training that was paused or killed goes on as if nothing had happened."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from autotune.parallel.single import Solo
from autotune.records.job import Train
from autotune.records.plan import Recipe
from autotune.worker.channel import NullChannel
from autotune.worker.contract import task
from autotune.worker.training import checkpoint
from autotune.worker.training.evaluation import Validator
from autotune.worker.training.loop import Loop
from tests.support import tasks, texts
from tests.support.tasks import StopsAt

MODEL = (
    texts.noisy()
    + """
def make_model():
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 8),
        nn.ReLU(), nn.Linear(8, 3),
    )
"""
)
EVERYTHING: dict[str, Any] = {
    "lr": 0.02, "batch_size": 8, "schedule": "one_cycle", "ema": 0.9, "clip_norm": 1.0,
}  # fmt: skip


def run(root: Path, channel: Any = None, more_model: str = "", **more: Any) -> Any:
    recipe = {**EVERYTHING, **more.pop("recipe", {})}
    fields = {"epochs": 6, "step_losses": 1000, "rungs": (1.5, 2, 6), "weights_out": "w.st", **more}
    return tasks.trained(root, MODEL + more_model, channel, recipe, **fields)


@pytest.mark.parametrize("rule", ["adamw", "nesterov", "muon", "adafactor"])
def test_paused_and_resumed_is_as_uninterrupted(tmp_path: Path, rule: str) -> None:
    recipe = {"optimizer": rule}
    whole = run(tmp_path, recipe=recipe)
    weights = load_file(tmp_path / "w.st")
    first = run(tmp_path, StopsAt(1.5), recipe=recipe, checkpoint="deep/t.state")
    assert (first.stopped, first.steps) == (True, 6)  # of four an epoch
    second = run(tmp_path, StopsAt(2), recipe=recipe, checkpoint="deep/t.state", rungs=(2, 6))
    assert (second.epochs, second.resumed_epochs) == (2, 1.5)
    last = run(tmp_path, recipe=recipe, checkpoint="deep/t.state", rungs=(6,))
    assert last.step_losses == whole.step_losses
    assert last.train_losses == pytest.approx(whole.train_losses)
    assert first.val_losses + second.val_losses + last.val_losses == whole.val_losses
    assert last.train_s > second.train_s > first.train_s > 0
    for name, tensor in load_file(tmp_path / "w.st").items():
        assert tensor.equal(weights[name]), name


def test_a_training_that_had_ended_is_only_validated_again(tmp_path: Path) -> None:
    whole = run(tmp_path, checkpoint="t.state", rungs=(6,))
    again = run(tmp_path, checkpoint="t.state", rungs=(6,))
    assert again.resumed_epochs == 6
    assert (again.train_s, again.val_losses) == (whole.train_s, whole.val_losses)
    assert again.weights_sha256 == whole.weights_sha256
    assert again.samples_per_s == whole.samples_per_s


def test_a_killed_training_goes_on_from_the_last_epoch_kept(tmp_path: Path) -> None:
    whole = run(tmp_path, rungs=(6,))
    bomb = (
        "\ndef loss(output, target):\n    import os\n    global count\n"
        "    count = globals().get('count', 0) + output.requires_grad\n"
        "    if count == 18 and not os.path.exists('{0}'):\n"
        "        open('{0}', 'w').close()\n        raise KeyboardInterrupt\n"
        "    return nn.functional.cross_entropy(output, target)\n"
    ).format(tmp_path / "killed")
    settings: dict[str, Any] = {"checkpoint": "t.state", "save_s": 0.0, "rungs": (6,)}
    with pytest.raises(KeyboardInterrupt):  # in the fifth epoch of four steps each
        run(tmp_path, more_model=bomb, **settings)
    done = run(tmp_path, more_model=bomb, **settings)
    assert done.resumed_epochs == 4
    assert done.step_losses == pytest.approx(whole.step_losses, abs=1e-6)


def test_the_state_of_another_training_is_none(tmp_path: Path) -> None:
    run(tmp_path, checkpoint="t.state")
    assert run(tmp_path, checkpoint="t.state", seed=1).resumed_epochs == 0


def test_unneeded_states_are_deleted(tmp_path: Path) -> None:
    run(tmp_path, checkpoint="old.state")
    run(tmp_path, checkpoint="new.state", drop=("old.state", "never.state"))
    assert not (tmp_path / "old.state").exists()
    assert (tmp_path / "new.state").exists()


def test_a_share_that_holds_no_step_trains_nothing(tmp_path: Path) -> None:
    spec = tasks.write(tmp_path, MODEL)
    loop = Loop(Recipe(batch_size=8), task.load(spec), Solo("cpu", 0.0), seed=0, epochs=2)
    loop.to(1.0)
    steps = loop.steps
    loop.to(math.nextafter(1.0, 2.0))  # as a sum of shares may be
    assert loop.steps == steps
    loop._epoch(0)
    loop.to(2.0)
    assert loop.steps == 2 * steps


class OfTwo(Solo):
    """The second of two ranks, alone."""

    rank, world = 1, 2


def test_a_further_rank_keeps_its_own_random_numbers(tmp_path: Path) -> None:
    spec = tasks.write(tmp_path, MODEL)
    job = Train(task=spec, recipe=Recipe(batch_size=8), epochs=2, checkpoint="t.state")

    def loop(group: Solo) -> Loop:
        return Loop(job.recipe, task.load(spec), group, seed=0, epochs=2)

    first, second = loop(Solo("cpu", 0.0)), OfTwo("cpu", 0.0)
    validator = Validator(first.loaded, first.model, first.group, NullChannel())
    checkpoint.Checkpointer(first, job, tmp_path, first.group, validator).save()
    torch.manual_seed(77)
    checkpoint.Checkpointer(first, job, tmp_path, second, validator).save()
    expected = torch.rand(3)
    assert sorted(p.name for p in tmp_path.glob("t.state*")) == ["t.state", "t.state.rank1"]
    torch.manual_seed(1)
    checkpoint.Checkpointer(loop(Solo("cpu", 0.0)), job, tmp_path, second, validator)
    assert torch.rand(3).equal(expected)


def test_a_stream_goes_on_where_it_was(tmp_path: Path) -> None:
    stream = (
        "\nfrom torch.utils.data import IterableDataset\n"
        "class Endless(IterableDataset):\n    def __iter__(self):\n"
        "        g = torch.Generator().manual_seed(3)\n        while True:\n"
        "            x = torch.randn(6, generator=g)\n            yield x, int(x[:3].argmax())\n"
        "train_steps = 4\nrecipe = {'batch_size': 8}\n"
        "def train_data():\n    return Endless()\n"
    )
    whole = run(tmp_path, more_model=stream, rungs=(2, 6))
    run(tmp_path, StopsAt(2), more_model=stream, rungs=(2, 6), checkpoint="t.state")
    last = run(tmp_path, more_model=stream, rungs=(6,), checkpoint="t.state")
    assert last.step_losses == pytest.approx(whole.step_losses, abs=1e-6)


@pytest.mark.parametrize("count", [2, 3, 100])
def test_a_batch_in_parts_gives_the_same_gradient(tmp_path: Path, count: int) -> None:
    plain = "\ndef make_model():\n    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))\n"
    whole = run(tmp_path, more_model=plain)
    parts = run(tmp_path, more_model=plain, recipe={"accumulate": count})
    assert parts.step_losses == pytest.approx(whole.step_losses, rel=1e-4)


def test_half_precision_scales_its_losses(tmp_path: Path) -> None:
    full, half = run(tmp_path), run(tmp_path, recipe={"precision": "fp16"})
    assert half.train_losses[-1] == pytest.approx(full.train_losses[-1], rel=0.1)
    assert half.step_losses != full.step_losses


def test_a_loss_that_climbs_away_is_cut_within_a_few_steps(tmp_path: Path) -> None:
    from autotune.errors import JobError

    steep = "\ndef loss(output, target):\n    return (output - 1.0).square().mean()\n"
    wild = {"optimizer": "sgd", "lr": 3.0, "schedule": "constant", "clip_norm": None, "ema": None}
    linear = "\ndef make_model():\n    return nn.Linear(6, 3)\n"
    with pytest.raises(JobError, match="climbed from") as caught:
        run(tmp_path, more_model=steep + linear, recipe=wild, epochs=500, rungs=(500,), watch=True)
    assert caught.value.kind == "diverged"
    torch.manual_seed(0)
    run(tmp_path, watch=True)
