"""Loader workers: the same batches in the same order, and one that dies costs nothing."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, dataloader

from autotune.worker.data.batches import Batches, RankShare

OWNER = os.getpid()


class Slow(Dataset[Any]):
    """Rows of numbers; in a worker row ``deadly`` ends the process."""

    def __init__(self, deadly: int | None = None, wrong: int | None = None) -> None:
        self.deadly, self.wrong = deadly, wrong

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == self.deadly and os.getpid() != OWNER:
            os._exit(9)
        if index == self.wrong:
            raise RuntimeError("the user's own mistake")
        return torch.full((2,), float(index)), index


def collate(samples: list[Any]) -> tuple[Any, Any]:
    return torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples])


def epoch(dataset: Slow, workers: int) -> list[list[int]]:
    batches = Batches(dataset, collate, RankShare(5, workers=workers), seed=3)
    return [batch.target.tolist() for batch in batches.epoch(2)]


def test_workers_change_neither_batches_nor_their_order() -> None:
    assert epoch(Slow(), 2) == epoch(Slow(), 0)


def test_a_worker_that_dies_is_done_without(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch looks for the dead every five seconds
    look = dataloader._MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(look, "__defaults__", (0.2,))
    assert epoch(Slow(deadly=7), 1) == epoch(Slow(), 0)
    assert "without workers from here on" in capfd.readouterr().err


def test_a_mistake_of_the_users_is_raised() -> None:
    with pytest.raises(RuntimeError, match="the user's own mistake"):
        epoch(Slow(wrong=4), 1)


def test_training_uses_them(tmp_path: Path) -> None:
    from autotune.records.job import Throughput
    from autotune.records.plan import Recipe
    from autotune.records.task import TaskSpec
    from autotune.worker.channel import NullChannel
    from autotune.worker.training import train

    (tmp_path / "model.py").write_text(
        "import torch, os, time\nfrom torch import nn\nfrom torch.utils.data import Dataset\n"
        "OWNER = os.getpid()\n"
        "class Rows(Dataset):\n    def __len__(self):\n        return 24\n"
        "    def __getitem__(self, i):\n        time.sleep(2e-4)\n"
        f"        with open({str(tmp_path / 'seen')!r}, 'a') as file:\n"
        "            file.write(f'{os.getpid() == OWNER} ')\n"
        "        return torch.randn(3), i % 2\n"
        "def train_data():\n    return Rows()\n"
        "def eval_data():\n    return Rows()\n"
        "def make_model():\n    return nn.Linear(3, 2)\n"
    )
    spec = TaskSpec(kind="file", path=str(tmp_path / "model.py"))
    job = Throughput(task=spec, recipe=Recipe(batch_size=8, workers=1), budget_s=0.02)
    rate = train.throughput(job, tmp_path, NullChannel())
    assert rate.waiting is not None
    assert rate.waiting > 0.05
    assert "False" in (tmp_path / "seen").read_text()
