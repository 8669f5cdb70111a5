"""The forms that a model takes between training and artifact: each is one folder on disk.

    module    weights.safetensors, structure.json[, model.py]
      |--export--> onnx      model.onnx
      |              `--convert--> openvino   model.xml, model.bin
      `--export--> program   model.pt2 (for a module whose source cannot be shipped)

Each folder also holds ``about.json``, an `Interface`: the model's inputs and outputs.  Later stages
need neither the task nor the user's file.
"""

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autotune.records import codec
from autotune.records.base import Record

ROAD = ("module", "onnx", "openvino")
"""Each can be converted to those after it, not to those before.  A ``program`` is a module."""
WORDS = dict(zip(ROAD, ("the module", "an ONNX model", "an OpenVINO model"), strict=True))
OPENVINO = ROAD[2]
MODULE = "module"
"""Metadata key of a graph node: the module that it comes from, as ``named_modules`` names it."""
ABOUT = "about.json"


class Interface(Record, frozen=True, kw_only=True):
    """How a model is called.  Shapes are per sample (no batch dimension).

    ``input_names`` are those of the dict, or made up for tensors and tuples.
    ``output_names`` name the tensors of the output in order; for an ``output_kind`` of
    ``dict`` they are its keys.  ``standalone``: ``model.py`` in the folder makes the model
    without the user's folder.  ``batch_size`` is None where any batch may be fed.
    ``precision`` is what a runtime shall compute in, but for the modules in ``exact``, which stay
    in fp32; inputs and outputs stay as they are.  ``sparse``: Linear weights of which two of each
    four are 0 shall be multiplied so.
    """

    input_kind: Literal["tensor", "tuple", "dict"]
    input_names: tuple[str, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    input_dtypes: tuple[str, ...]
    ragged: bool = False
    output_kind: Literal["tensor", "tuple", "dict"]
    output_names: tuple[str, ...]
    args: tuple[str, ...] = ()
    standalone: bool = False
    batch_size: int | None = None
    parameters: int
    flops_per_sample: float | None = None
    recovery_s: float = 0.0
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    exact: tuple[str, ...] = ()
    sparse: bool = False


@dataclass(frozen=True)
class Form:
    """One model on disk.  ``kind`` is one of `ROAD`, or ``program``."""

    kind: str
    folder: Path
    about: Interface

    def save_about(self) -> None:
        (self.folder / ABOUT).write_bytes(codec.encode(self.about, indent=2))


def read_about(folder: Path) -> Interface:
    """Read a folder's interface.

    Raises:
        FormatError: the file is damaged.
    """
    return codec.decode((folder / ABOUT).read_bytes(), Interface, what=str(folder / ABOUT))


def place(source: Path, target: Path) -> None:
    """Hard-link a file into another folder, or copy it where links are not supported."""
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)


def changed(about: Interface, **fields: Any) -> Interface:
    """A copy with some fields changed."""
    import msgspec

    return msgspec.structs.replace(about, **fields)


def reaches(have: str, wanted: str) -> bool:
    """Whether a form is, or can be converted to, the ``wanted`` one."""
    return ROAD.index(have) <= ROAD.index(wanted)
