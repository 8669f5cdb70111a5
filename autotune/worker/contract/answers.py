"""Records what the model as it came says to the rows that have no targets."""

from pathlib import Path
from typing import Any

from torch import nn

from autotune.worker.contract import agreement
from autotune.worker.contract.task import LoadedTask
from autotune.worker.data import rows
from autotune.worker.evaluation.evaluate import evaluating
from autotune.worker.user_file.errors import guard

_BATCH = 32


def record(loaded: LoadedTask, model: nn.Module, root: Path) -> None:
    """Run the model once over all such rows, and keep its outputs for this job and others.

    Raises:
        ContractError: the model raises, or its main output holds no floats.
    """
    keys: list[agreement.Key] = []
    outputs: list[list[Any]] = []
    for part in ("validation", "test", "calibration"):
        if getattr(loaded, part) is None:
            continue
        for inputs, target in loaded.batches(part, _BATCH):
            with guard(loaded.where, "the model's forward", loaded.path), evaluating(model):
                output = loaded.call(model, inputs)
            found = agreement.main(output, loaded.where).detach().float().cpu().numpy()
            keys += [(int(source), int(row)) for source, row in target.tolist()]
            outputs += [[row] for row in found]
    made = agreement.Answers(keys, rows.from_samples("tensor", ("",), outputs))
    (root / "data").mkdir(parents=True, exist_ok=True)
    made.save(root)
    loaded.functions.answers = made
