"""Training data that can only be iterated, and loaders of the user's own."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from autotune.errors import ContractError
from autotune.records.job import Inspect, Throughput, Train
from autotune.records.plan import Recipe
from autotune.records.task import TaskSpec
from autotune.worker.build import recovery
from autotune.worker.channel import NullChannel
from autotune.worker.contract import task as contract_task
from autotune.worker.data import batches, rows
from autotune.worker.data.streams import Stream
from autotune.worker.survey import inspect
from autotune.worker.training import train
from tests.support import tasks, texts

HEAD = texts.noisy(None, 80) + "\ndef make_model():\n    return nn.Linear(6, 3)\n"
ITERABLE = """
class Rows(IterableDataset):
    def __iter__(self):
        yield from _data(48, 0)

train_steps = 4
recipe = {"batch_size": 16, "lr": 0.02}

def train_data():
    return Rows()
"""
LOADER = """
def train_loader(batch_size, rank, world, workers):
    data = _data(50, 0)
    sampler = DistributedSampler(data, world, rank, seed=1)
    return DataLoader(data, batch_size, sampler=sampler)
"""
ENDLESS = """
train_steps = 3
def train_loader(batch_size, rank, world, workers):
    def forever():
        while True:
            yield next(iter(DataLoader(_data(50, 0), batch_size)))
    return forever()
"""


def task(root: Path, text: str) -> TaskSpec:
    return tasks.write(root, HEAD + text)


@pytest.mark.parametrize(
    ("text", "rows_", "steps"), [(ITERABLE, 64, 4), (LOADER, 50, 4), (ENDLESS, 96, 6)]
)
def test_they_are_inspected_and_trained(tmp_path: Path, text: str, rows_: int, steps: int) -> None:
    spec = task(tmp_path, text)
    info = inspect.run(Inspect(task=spec), tmp_path, NullChannel()).info
    assert info.train_rows == rows_
    assert info.own_loader
    assert len(rows.load(tmp_path / "data" / "calibration.npz")) == rows_
    recipe = Recipe(lr=0.02, batch_size=16)
    done = train.run(
        Train(task=spec, recipe=recipe, epochs=15, rungs=(5, 15)), tmp_path, NullChannel()
    )
    assert done.steps == 15 * steps
    assert done.qualities[-1] > 0.75
    rate = Throughput(task=spec, recipe=recipe, budget_s=0.1)
    assert train.throughput(rate, tmp_path, NullChannel()).samples_per_s > 0


def test_recovery_takes_a_stream_too(tmp_path: Path) -> None:
    loaded = contract_task.load(task(tmp_path, ITERABLE))
    torch.manual_seed(0)
    model = loaded.make_model()
    channel = NullChannel()
    recovery.recover(model, loaded, Recipe(lr=0.05, batch_size=16), 8, 0, channel)
    assert channel.reports[-1][1] < channel.reports[0][1]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_out_a_stream(world: int) -> None:
    stream = Stream(lambda: iter([(torch.tensor([float(i)]), i) for i in range(20)]), 12, "m")
    seen: list[int] = []
    for rank in range(world):
        share = batches.RankShare(4, rank, world)
        made = batches.StreamBatches(stream, _collate, share)
        for batch in itertools.chain(made.epoch(1), made.epoch(2)):
            seen += batch.target.tolist()[: batch.rows]
            assert batch.of == 4
    assert len(seen) == 24
    # each rank goes through its own residues of the 20 samples, and starts again at their end
    assert {i for i in range(20) if seen.count(i) > 2} == set()
    assert len(set(seen)) >= 18


def _collate(samples: list[Any]) -> tuple[Any, Any]:
    x, y = zip(*samples, strict=True)
    return torch.stack(x), torch.tensor(y)


def test_a_stream_starts_again_and_an_empty_one_is_refused() -> None:
    stream = Stream(lambda: iter([(1, 2), (3, 4)]), 5, "m.py")
    assert list(itertools.islice(stream.samples(), 5))[4] == (1, 2)
    assert [stream[i] for i in (3, 0, 4)] == [(3, 4), (1, 2), (1, 2)]
    with pytest.raises(ContractError, match=r"m.py: the training data yields no sample"):
        next(Stream(lambda: iter([]), 5, "m.py").samples())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ITERABLE.replace("train_steps = 4", ""), "train_steps = 1000"),
        (ITERABLE + "del eval_data\n", "no rows of it can be held back"),
        (LOADER + "del eval_data\n", "which rows the loader leaves out is not known"),
        (ENDLESS.replace("train_steps = 3", ""), "a loader without a length"),
        (ENDLESS.replace("3\n", "0\n", 1), "train_steps must be a whole number"),
        (LOADER.replace("return Data", "return 1 / 0  # "), "ZeroDivisionError"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        contract_task.load(task(tmp_path, text))
