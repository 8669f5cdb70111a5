"""What compression steps and loaders are tested with: a small model's form, and its tools."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autotune.compress import CompressTools
from autotune.forms import Form, Interface, module

Make = Callable[[], nn.Module]


def interface(width: int, **more: Any) -> Interface:
    """One fp32 input of ``width`` features, one output."""
    fields = {
        "input_kind": "tensor",
        "input_names": ("input",),
        "input_shapes": ((width,),),
        "input_dtypes": ("float32",),
        "output_kind": "tensor",
        "output_names": ("output",),
        "parameters": 1,
    }
    return Interface(**{**fields, **more})


def made_from(source: str) -> nn.Module:
    """What ``make_model`` of a model file gives, ready to serve, the same at each call."""
    names: dict[str, Any] = {}
    exec(source, names)
    torch.manual_seed(0)
    fresh: nn.Module = names["make_model"]()
    return fresh.eval()


def form(folder: Path, make: Make, width: int, **more: Any) -> Form:
    """The model saved in a new folder."""
    folder.mkdir()
    module.save(make(), make(), folder)
    return Form("module", folder, interface(width, **more))


def refuse(*_: object) -> Any:
    """Stands for a tool that nobody is to use."""
    raise AssertionError("not needed")


def tools(
    workdir: Path,
    make: Make,
    recover: Callable[[nn.Module], float] = refuse,
    calibration: Callable[[int], Iterator[dict[str, Any]]] = refuse,
) -> CompressTools:
    """A step's tools in a new folder."""
    workdir.mkdir()
    return CompressTools(
        seed=0,
        batch_size=1,
        workdir=workdir,
        module=lambda form: module.load(make(), form.folder),
        fresh=make,
        example=refuse,
        recover=recover,
        calibration=calibration,
    )


def loader(out: Path) -> Any:
    """An artifact's ``load.py``, imported."""
    spec = importlib.util.spec_from_file_location(f"load_{out.name}", out / "load.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found
