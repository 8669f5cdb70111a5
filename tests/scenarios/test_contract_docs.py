"""`docs/contract.md`: each of its examples is inspected and trained; its table is complete."""

import re
from pathlib import Path

import pytest

from autotune.records.job import Inspect, Train
from autotune.records.plan import Recipe
from autotune.worker.channel import NullChannel
from autotune.worker.survey import inspect
from autotune.worker.training import train
from tests.support import tasks

TEXT = (Path(__file__).parent.parent.parent / "docs" / "contract.md").read_text()
FIRST, *BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
NAMES = [  # what the code looks for, but for a script's own four
    "make_model", "train_data", "eval_data", "test_data", "loss", "score", "quality", "metric",
    "higher_is_better", "pretrained", "recipe", "epochs", "steps", "space", "train_steps",
    "collate",
    "train_loader", "train", "tunes", "dynamic",
]  # fmt: skip


def first_line(block: str) -> str:
    return next(line for line in block.splitlines() if line and "import" not in line)


@pytest.mark.parametrize("block", ["", *BLOCKS], ids=lambda b: first_line(b or FIRST))
def test_an_example_works(tmp_path: Path, block: str) -> None:
    text = block if "criterion" in block else FIRST + block
    spec = tasks.write(tmp_path, text)
    info = inspect.run(Inspect(task=spec), tmp_path, NullChannel()).info
    if info.pretrained:
        return
    recipe = Recipe(**{"lr": 1e-2, "batch_size": 64, **(info.recipe or {})})
    done = train.run(Train(task=spec, recipe=recipe, epochs=3), tmp_path, NullChannel())
    assert done.epochs == 3
    assert done.qualities


def test_every_name_has_a_row_and_a_section() -> None:
    table = re.findall(r"`(\w+)", "".join(re.findall(r"^\|[^|]+\|", TEXT, re.MULTILINE)))
    sections = re.findall(r"^### (\w+)", TEXT, re.MULTILINE)
    assert set(NAMES) <= set(table)
    assert sorted(sections) == sorted(NAMES)
