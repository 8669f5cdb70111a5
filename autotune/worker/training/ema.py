"""An exponential moving average of a model's weights (docs/algorithms.md).

    after each step     average += (1 - d) (weights - average),  d = min(decay, (1 + t) / (10 + t))
    while evaluated     the model holds the average
    afterwards          it goes on with its own weights

Floating-point buffers (the statistics of batch norm) are averaged as the weights are; integer
buffers are the model's own.  Tied weights are averaged once.  The figures are those of torch's
``AveragedModel(use_buffers=True)``, whose update takes ten times as long (it collects the tensors
anew: 4.1 ms against 0.4 ms for 20 convolutions with batch norm) and which copies the whole model.
"""

import contextlib
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn


class MovingAverage:
    """The moving average of ``model``, which starts as its weights are now.

    Args:
        model: what is being trained.
        decay: between 0 and 1; the first steps use less, so that a short training is not held
            back by its start (Polyak & Juditsky, 1992; the ramp is TensorFlow's).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        tensors = chain(model.parameters(), model.buffers())
        self._live = [t.detach() for t in tensors if t.is_floating_point()]
        self._mean = [t.clone() for t in self._live]
        self._decay = decay
        self._steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after one more step in."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        torch._foreach_lerp_(self._mean, self._live, 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the model holds the average."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the average."""
        kept = [t.clone() for t in self._live]
        torch._foreach_copy_(self._live, self._mean)
        torch._foreach_copy_(self._mean, kept)

    def state(self) -> dict[str, Any]:
        """What `restore` needs."""
        return {"mean": self._mean, "steps": self._steps}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        torch._foreach_copy_(self._mean, state["mean"])
        self._steps = state["steps"]
