"""The data functions of a benchmark's task file, from arrays by part.

train_data, eval_data, test_data = parts.of(data.fashion)
"""

from collections.abc import Callable

import torch
from torch.utils.data import TensorDataset

from benchmarks.data import Arrays, Part

Made = Callable[[], TensorDataset]


def of(arrays: Callable[[Part], Arrays]) -> tuple[Made, Made, Made]:
    """`train_data`, `eval_data` and `test_data` of a task; nothing is read before they are
    called.
    """

    def made(part: Part) -> Made:
        return lambda: TensorDataset(*map(torch.from_numpy, arrays(part)))

    return made("train"), made("validation"), made("test")
