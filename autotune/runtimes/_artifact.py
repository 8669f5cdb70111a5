"""What every artifact folder has: ``artifact.json`` and ``load.py``, generated from templates."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from autotune.errors import install_hint
from autotune.forms import ABOUT, Form, place
from autotune.runtimes import RuntimeSettings

MODEL_FILES = ("weights.safetensors", "structure.json", "model.pt2", "model.onnx", "model.xml")


def write(
    form: Form,
    out: Path,
    settings: RuntimeSettings,
    *,
    runtime: str,
    loader: str,
    without: tuple[str, ...] = (),
) -> None:
    """Write ``artifact.json``, ``load.py`` and the form's files except those in ``without``."""
    for source in sorted(path for path in form.folder.rglob("*") if path.is_file()):
        name = source.relative_to(form.folder)
        if str(name) in (ABOUT, *without):
            continue
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        place(source, out / name)
    facts = json.dumps(_facts(form, settings, runtime), indent=2)
    (out / "artifact.json").write_text(facts + "\n")
    (out / "load.py").write_text(loader)


def missing(packages: tuple[str, ...], extra: str) -> str | None:
    """What to install, where a package is missing."""
    absent = tuple(name for name in packages if find_spec(name) is None)
    return install_hint(extra, absent) if absent else None


def _facts(form: Form, settings: RuntimeSettings, runtime: str) -> dict[str, Any]:
    about = form.about
    return {
        "schema": "autotune.artifact/1",
        "runtime": runtime,
        "threads": settings.threads,
        "batch_size": settings.batch_size,
        "input_kind": about.input_kind,
        "input_names": about.input_names,
        "input_shapes": about.input_shapes,
        "input_dtypes": about.input_dtypes,
        "output_kind": about.output_kind,
        "output_names": about.output_names,
        "dynamic_batch": about.batch_size is None,
        "args": about.args,
    }


_FIXED = '''

def _padded(predict, size):
    """This model takes exactly ``size`` rows: fewer are padded, and their outputs cut."""

    def call(*arrays, **named):
        rows = len((*arrays, *named.values())[0])
        if rows > size:
            raise ValueError(f"this model takes at most {size} rows a call, got {rows}")
        fill = [(0, size - rows)]
        arrays = [np.pad(a, fill + [(0, 0)] * (a.ndim - 1), mode="edge") for a in arrays]
        named = {
            n: np.pad(a, fill + [(0, 0)] * (a.ndim - 1), mode="edge") for n, a in named.items()
        }
        outputs = predict(*arrays, **named)
        if isinstance(outputs, dict):
            return {k: v[:rows] for k, v in outputs.items()}
        if isinstance(outputs, tuple):
            return tuple(v[:rows] for v in outputs)
        return outputs[:rows]

    return lambda *arrays, **named: (
        predict if len((*arrays, *named.values())[0]) == size else call
    )(*arrays, **named)
'''


def for_batch_size(loader: str, form: Form) -> str:
    """A loader whose ``load`` ends in ``return PREDICT``, made for a dynamic or a fixed batch."""
    size = form.about.batch_size
    if size is None:
        return loader.replace("PREDICT", "predict")
    return loader.replace("PREDICT", f"_padded(predict, {size})") + _FIXED
