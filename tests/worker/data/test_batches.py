"""The rows of each step do not depend on the ranks, nor on how they are gathered."""

from itertools import chain
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from autotune.worker.data.batches import Batches, LoaderBatches, RankShare, StreamBatches
from autotune.worker.data.samples import Part
from autotune.worker.data.streams import Stream

X = torch.arange(23.0).reshape(23, 1)
Y = torch.arange(23)
DATA = TensorDataset(X, Y)


class Counted(TensorDataset):
    """A subclass may do anything: it must be asked row by row."""

    asked = 0

    def __getitem__(self, index: int) -> Any:
        Counted.asked += 1
        x, y = super().__getitem__(index)
        return x + 100, y


def collate(samples: list[Any]) -> Any:
    return tuple(default_collate(samples))


def rows(data: Dataset[Any], epoch: int = 1, seed: int = 3, **more: Any) -> list[list[int]]:
    share = RankShare(**{"batch_size": 5, **more})
    batches = Batches(data, collate, share, seed)
    return [batch.target[: batch.rows].tolist() for batch in batches.epoch(epoch)]


def test_an_epoch_holds_every_row_once() -> None:
    assert sorted(chain(*rows(DATA))) == list(range(23))
    assert [len(batch) for batch in rows(DATA)] == [5, 5, 5, 5, 3]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert rows(DATA) == rows(DATA)
    assert rows(DATA) != rows(DATA, epoch=2)
    assert rows(DATA) != rows(DATA, seed=4)
    assert rows(DATA, epoch=2) != rows(DATA, epoch=1, seed=4)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_share_out_the_same_batches(world: int) -> None:
    shares = [rows(DATA, rank=rank, world=world) for rank in range(world)]
    for whole, *parts in zip(rows(DATA), *shares, strict=True):
        assert sorted(whole) == sorted(chain(*parts))
        assert whole[::world] == parts[0]


def test_a_rank_without_rows_still_has_one_to_run_with() -> None:
    last = list(Batches(DATA, collate, RankShare(5, 3, 4), seed=0).epoch(1))[-1]
    assert (last.rows, last.of, len(last.input)) == (0, 3, 1)


def test_batch_norm_drops_a_last_batch_that_is_too_small() -> None:
    assert [len(b) for b in rows(DATA, batch_size=11)] == [11, 11, 1]
    assert [len(b) for b in rows(DATA, batch_size=11, batch_norm=True)] == [11, 11]
    assert [len(b) for b in rows(DATA, batch_norm=True, world=2)] == [3, 3, 3, 3]
    assert [len(b) for b in rows(DATA, batch_size=1, batch_norm=True)] == [1] * 23


@pytest.mark.parametrize(
    "share",
    [
        {"batch_size": 5},
        {"batch_size": 23},
        {"batch_size": 64},
        {"batch_size": 64, "batch_norm": True, "world": 16},
        {"batch_size": 11, "batch_norm": True},
        {"batch_size": 7, "batch_norm": True, "world": 2},
        {"batch_size": 1, "batch_norm": True},
    ],
)
def test_the_steps_of_an_epoch_are_known_before_it(share: dict[str, Any]) -> None:
    batches = Batches(DATA, collate, RankShare(**share), seed=0)
    assert batches.steps == len(list(batches.epoch(1)))
    stream = StreamBatches(
        Stream(lambda: iter(DATA), len(DATA), "model.py"), collate, RankShare(**share)
    )
    assert stream.steps == len(list(stream.epoch(1))) == batches.steps


def test_the_users_loader_says_its_steps_or_the_rows_do() -> None:
    def steps(loader: Any) -> int:
        loaded = SimpleNamespace(where="", path=None, train_loader=lambda *_: loader)
        return LoaderBatches(loaded, 23, RankShare(5)).steps

    assert steps([1, 2, 3]) == 3
    assert steps([0] * 100) == 5
    assert steps(iter([])) == 5


@pytest.mark.parametrize(
    "wrapped",
    [
        Subset(DATA, [4, 2, 9, 7]),
        Part(DATA, np.array([4, 2, 9, 7])),
        Part(Subset(DATA, [1, 4, 2, 9, 7])),
        Subset(Part(DATA, np.array([7, 9, 2, 4])), [3, 2, 1, 0]),
    ],
)
def test_subsets_are_gathered_as_they_read(wrapped: Any) -> None:
    for batch in Batches(wrapped, collate, RankShare(3), seed=1).epoch(1):
        assert batch.input[:, 0].tolist() == batch.target.tolist()
    read = {int(wrapped[i][1]) for i in range(len(wrapped))}
    assert {r for batch in rows(wrapped) for r in batch} == read


def test_a_subclass_and_an_odd_collate_are_never_guessed() -> None:
    Counted.asked = 0
    batches = list(Batches(Counted(X, Y), collate, RankShare(5), seed=3).epoch(1))
    assert Counted.asked == 23
    assert batches[0].input[0, 0] == batches[0].target[0] + 100

    def doubled(samples: list[Any]) -> Any:
        x, y = collate(samples)
        return x * 2, y

    batch = next(iter(Batches(DATA, doubled, RankShare(5), seed=3).epoch(1)))
    assert batch.input[:, 0].tolist() == (batch.target * 2).tolist()


def test_dict_inputs_are_collated() -> None:
    data: Any = [({"a": x, "b": -x}, y) for x, y in zip(X, Y, strict=True)]
    batch = Batches(data, collate, RankShare(5), seed=0).first(3)
    assert batch.input["b"][:, 0].tolist() == [0, -1, -2]
