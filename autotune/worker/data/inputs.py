"""What a batched input is made of: its kind, its named fields, their arrays."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autotune.worker.data.samples import LABELS

Array = NDArray[Any]
Kind = Literal["tensor", "tuple", "dict"]


def fields(inputs: Any) -> list[tuple[str, Any]]:
    """The named fields of an input: ``input``, ``input_0`` ..., or a dict's keys but ``labels``."""
    if isinstance(inputs, Mapping):
        return [(str(n), v) for n, v in inputs.items() if n != LABELS and v is not None]
    if isinstance(inputs, tuple | list):
        return [(f"input_{i}", value) for i, value in enumerate(inputs)]
    return [("input", inputs)]


def kind_of(inputs: Any) -> Kind:
    """How the model is called with an input."""
    if isinstance(inputs, Mapping):
        return "dict"
    return "tuple" if isinstance(inputs, tuple | list) else "tensor"


def as_array(value: Any) -> Array:
    """A field on the host, bfloat16 as float32."""
    if not isinstance(value, Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    array: Array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return array
