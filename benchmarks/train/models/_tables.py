"""Small tables of scikit-learn, divided by a fixed seed into train, validation and test."""

from typing import Any

import numpy as np
import torch
from sklearn import datasets
from torch.utils.data import TensorDataset


def parts(name: str, bounds: tuple[int, int], *, real: bool = False) -> dict[str, TensorDataset]:
    """``bounds`` are the rows of train, and of train and validation; the rest test.  Features,
    and ``real`` targets, are standardised by the training rows.
    """
    features, target = getattr(datasets, f"load_{name}")(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(features))
    cuts = np.split(order, bounds)
    seen = features[cuts[0]]
    features = (features - seen.mean(0)) / np.maximum(seen.std(0), 0.1)  # some pixels are always 0
    if real:
        known = target[cuts[0]]
        target = ((target - known.mean()) / known.std())[:, None]

    def made(rows: Any) -> TensorDataset:
        goal = torch.tensor(target[rows], dtype=torch.float32 if real else torch.int64)
        return TensorDataset(torch.tensor(features[rows], dtype=torch.float32), goal)

    return dict(zip(("train", "validation", "test"), map(made, cuts), strict=True))
