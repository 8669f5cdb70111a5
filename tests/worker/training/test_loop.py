"""The loop itself: what it asks of its group before the first step."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from autotune.records.plan import Recipe
from autotune.worker.contract import task
from autotune.worker.training.loop import Loop
from tests.support import tasks, texts


def loaded(root: Path, text: str) -> task.LoadedTask:
    return task.load(tasks.write(root, texts.DATA + text))


class Pair:
    """Stands for one of two ranks, to see what is asked of the group."""

    rank, world, device, started_s = 1, 2, "cpu", 0.0

    def __init__(self) -> None:
        self.find_unused: bool | None = None

    def wrap(self, model: nn.Module, *, find_unused: bool = False) -> nn.Module:
        self.find_unused = find_unused
        return model

    def share(self, value: float) -> float:
        return value


@pytest.mark.parametrize("spare", [True, False])
def test_unused_parameters_are_found_by_one_dry_run(tmp_path: Path, spare: bool) -> None:
    text = texts.TIED + ("\nNet.extra = None\n" if not spare else "")
    text += "\ndef make_model():\n    net = Net()\n"
    text += "    net.spare = nn.Linear(1, 1)\n" if spare else ""
    text += "    return net\n"
    group: Any = Pair()
    loop = Loop(Recipe(), loaded(tmp_path, text), group, seed=0)
    assert group.find_unused is spare
    assert all(p.grad is None for p in loop.model.parameters())
