"""Quality without labels: how far outputs agree with those of the model as it came.

    inputs alone --samples.Unlabelled--> (input, the row's number)
    pretrained model, once (Inspect) --> data/answers*.npz --row's number--> the answer to match

Where the outputs are classes for sure (``logits`` of transformers, or probabilities that sum to
1) a row scores 1 if both have the same argmax, else 0; other outputs score 1 - |x - a|^2 / |a|^2,
at least 0, for output x and answer a.  Only the main output is compared.  A user's own ``score``,
``quality``, ``metric`` and ``loss`` get the answer as their target.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autotune.errors import JobError
from autotune.worker.contract import default_metrics
from autotune.worker.data import rows, samples
from autotune.worker.user_file.errors import contract_error

METRIC = "agreement"
_FILE, _KEYS = "data/answers.npz", "data/answers-rows.npy"

Key = tuple[int, int]


class Answers:
    """The outputs of the model as it came, by source and row."""

    def __init__(self, keys: Sequence[Key], outputs: rows.Rows) -> None:
        self._place = {key: place for place, key in enumerate(keys)}
        self._outputs = outputs

    def of(self, target: Tensor) -> Tensor:
        """The answers to a batch of targets ``[rows, 2]``."""
        places = [self._place[int(source), int(row)] for source, row in target.tolist()]
        (found,), _ = self._outputs.batch(places)
        return torch.from_numpy(found).to(target.device)

    def save(self, root: Path) -> None:
        """Write them for later jobs."""
        rows.save(root / _FILE, self._outputs)
        np.save(root / _KEYS, np.asarray(list(self._place), np.int64).reshape(-1, 2))


def record(outputs: Iterable[tuple[Any, Tensor]], root: Path, where: str) -> Answers:
    """Keep the outputs of the model as it came, for this job and others.

    Args:
        outputs: of each batch the model's output, and its rows' numbers ``[rows, 2]``.
        root: the run's work folder.
        where: the name of the user's file, for messages.

    Raises:
        ContractError: a main output holds no floats.
    """
    keys: list[Key] = []
    found: list[list[Any]] = []
    for output, target in outputs:
        keys += [(int(source), int(row)) for source, row in target.tolist()]
        found += [[row] for row in main(output, where).detach().float().cpu().numpy()]
    answers = Answers(keys, rows.from_samples("tensor", ("",), found))
    (root / "data").mkdir(parents=True, exist_ok=True)
    answers.save(root)
    return answers


def read(root: Path) -> Answers | None:
    """What Inspect wrote; None where it wrote nothing."""
    if not (root / _KEYS).is_file():
        return None
    keys = [(int(s), int(r)) for s, r in np.load(root / _KEYS, allow_pickle=False)]
    return Answers(keys, rows.load(root / _FILE))


def missing() -> JobError:
    """The error where answers are asked for before there are any."""
    return JobError("unsupported", "the model's own outputs were not recorded: inspect it first")


def is_quality(parts: Sequence[Any], where: str, *, pretrained: bool) -> bool:
    """Whether the rows have no targets, so that agreement is the quality.

    Raises:
        ContractError: the model does not come trained, or only some rows have targets.
    """
    alone = [samples.unlabelled(part) for part in parts if part is not None]
    if not any(alone):
        return False
    if pretrained and all(alone):
        return True
    raise contract_error(
        where,
        "some of the data has no targets",
        found="inputs alone, "
        + ("and others with targets" if pretrained else "and a model that is not trained yet"),
        missing="(input, target) samples; or, for a model that comes trained, inputs alone in "
        "eval_data() and no train_data(): quality is then agreement with its own outputs",
        fix="pretrained = True\n"
        "def eval_data():\n"
        "    X = ...  # one row a sample\n"
        "    return torch.utils.data.TensorDataset(X)",
    )


def main(output: Any, where: str = "") -> Tensor:
    """The output tensor that is compared.

    Raises:
        ContractError: there is none.
    """
    found = default_metrics.main_output(output)
    if found is None or not found.is_floating_point():
        raise contract_error(
            where,
            "samples without targets need an output of floats to agree with",
            found=samples.describe(output),
            missing="targets, or a model whose main output holds floats",
        )
    return found


def score(output: Any, answer: Tensor) -> Tensor:
    """Agreement of each row, 0 to 1."""
    found = main(output).float()
    axis = _classes_axis(output, answer)
    if axis is not None:
        same = (found.argmax(axis) == answer.argmax(axis)).float()
        return same.flatten(1).mean(1) if same.dim() > 1 else same
    return (1 - error(found, answer)).clamp(min=0)


def loss(output: Any, answer: Tensor) -> Tensor:
    """The mean of `error` over the batch: what recovery minimises."""
    return error(main(output), answer).mean()


def error(found: Tensor, answer: Tensor) -> Tensor:
    """``|x - a|^2 / |a|^2`` of each row, ``[rows]``."""
    wrong = (found - answer).square().flatten(1).sum(1)
    return wrong / answer.square().flatten(1).sum(1).clamp(min=1e-12)


def _classes_axis(output: Any, answer: Tensor) -> int | None:
    """The dimension of the classes; None unless the outputs are classes for sure."""
    if isinstance(getattr(output, "logits", None), Tensor):
        return -1
    if answer.dim() < 2 or answer.shape[1] < 2 or bool((answer < 0).any()):
        return None
    sums = answer.sum(1)
    return 1 if torch.allclose(sums, torch.ones_like(sums), atol=1e-3) else None
