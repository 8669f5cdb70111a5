"""What the stages of a build need: the loaded task, its model, examples and calibration rows, and
the conversions between forms.

The task is loaded at most once a build, and not at all when every stage is in the cache.
"""

import contextlib
import functools
import hashlib
import os
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from autotune.compress import CompressTools
from autotune.errors import JobError
from autotune.forms import (
    OPENVINO,
    Form,
    Interface,
    changed,
    exported,
    flat,
    module,
    onnx_file,
    openvino_ir,
    place,
)
from autotune.forms.flat import Flat
from autotune.records.job import Build
from autotune.records.plan import Recovery, Step
from autotune.records.task import Dynamic
from autotune.runtimes import _torch as torch_loader
from autotune.worker.build.recovery import recover
from autotune.worker.channel import Channel
from autotune.worker.contract import LoadedTask, dynamic_shapes, load
from autotune.worker.data import rows
from autotune.worker.data.batch_tree import fields

SOURCE = "model.py"
_RESERVED = (
    SOURCE,
    "load.py",
)  # names in an artifact that no module beside the user's source may have


class BuildContext:
    """What the stages of one build share."""

    def __init__(self, job: Build, root: Path, channel: Channel) -> None:
        self.job = job
        self.root = root
        self.channel = channel

    @functools.cached_property
    def loaded(self) -> LoadedTask:
        return load(self.job.task).read_inspected(self.root)

    def fresh(self) -> nn.Module:
        """A new model from the task's code, initialized with the job's seed."""
        torch.manual_seed(self.job.seed)
        return self.loaded.make_model()

    def module(self, form: Form) -> nn.Module:
        """The module of a module form, in eval mode."""
        return module.load(self.fresh(), form.folder)

    def example(self, rows_: int, size: Mapping[str, int] | None = None) -> tuple[Tensor, ...]:
        """One sample repeated ``rows_`` times, as positional tensors; ``size``: of the dynamic
        dimensions, by name.
        """
        sample = self.loaded.validation[0]
        inputs, _ = self.loaded.collate([sample] * rows_)
        named = [(n, torch.as_tensor(value)) for n, value in fields(inputs)]
        if size:
            named = dynamic_shapes.resized(named, self.loaded.info.dynamic, size)
        return tuple(value for _, value in named)

    def tools(self, workdir: Path, step: Step) -> CompressTools:
        """What a compression step may use.

        Raises:
            JobError: unsupported: its ``recovery_`` parameters are invalid.
        """
        try:
            settings = step.recovery
        except msgspec.ValidationError as error:
            raise JobError("unsupported", f"{step.name}: recovery_ parameters: {error}") from None
        job = self.job
        return CompressTools(
            seed=job.seed,
            batch_size=job.batch_size,
            workdir=workdir,
            module=self.module,
            fresh=self.fresh,
            example=self.example,
            recover=lambda model: self.recover(model, settings),
            calibration=self.calibration,
            shared=self.root / "cache",
        )

    def recover(self, model: nn.Module, settings: Recovery) -> float:
        """Train a compressed model in place, the dense one its teacher; the seconds it took."""
        job = self.job
        path = self.root / "cache" / f"teacher-{self._teacher_key()}.safetensors"
        return recover(
            model,
            self.loaded,
            job.recipe,
            job.recovery_epochs,
            job.seed,
            self.channel,
            self.dense_model,
            path,
            settings,
            "cuda" if job.device != "cpu" and torch.cuda.is_available() else "cpu",
        )

    def dense_model(self) -> nn.Module:
        """The task's model with the trained weights, in eval mode.

        Raises:
            JobError: unsupported: the weights do not fit the model.
        """
        model = self.fresh()
        try:
            module.load_weights(model, self.root / self.job.weights)
        except (RuntimeError, KeyError) as error:
            raise JobError("unsupported", f"the weights do not fit the model: {error}") from error
        return model.eval()

    def _teacher_key(self) -> str:
        """A hash of all that the dense model's outputs for the training rows depend on."""
        with (self.root / self.job.weights).open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
        task = self.job.task
        about = (weights, self.loaded.info.source_sha256, task.path, task.args, task.seed)
        return hashlib.sha256(repr((about, task.params)).encode()).hexdigest()[:24]

    def calibration(self, size: int) -> Iterator[dict[str, Any]]:
        """Calibration rows in full batches of ``size`` (of one row where row shapes differ).

        Raises:
            JobError: unsupported: there are none.
        """
        path = self.root / "data" / "calibration.npz"
        found = rows.load(path) if path.is_file() else None
        if found is None or len(found) == 0:
            raise JobError("unsupported", "calibration rows are needed, and there are none")
        step = 1 if found.ragged else min(size, len(found))
        names = contract_names(self.loaded)
        for start in range(0, len(found) - step + 1, step):
            arrays, named = found.batch(range(start, start + step))
            yield named or dict(zip(names, arrays, strict=True))

    def dense(self, out: Path) -> Form:
        """The first form: the task's model with the trained weights."""
        model = self.dense_model()
        module.save(model, model, out)
        about = self._interface(model)
        alone = self.loaded.source is not None and self._ship_source(about, model, out)
        return Form("module", out, changed(about, standalone=alone))

    def _interface(self, model: nn.Module) -> Interface:
        info = self.loaded.info
        names = contract_names(self.loaded)
        inputs = self.example(1)
        with torch.no_grad():
            output = flat.call(model, info.input_kind, names, inputs)
        try:
            kind, keys = flat.describe(output)
        except TypeError as error:
            raise JobError("unsupported", str(error)) from error
        run = Flat(model, info.input_kind, names)
        return Interface(
            input_kind=info.input_kind,
            input_names=names,
            input_shapes=info.input_shapes,
            input_dtypes=info.input_dtypes,
            ragged=info.ragged,
            output_kind=kind,
            output_names=keys,
            args=self.job.task.args,
            parameters=module.parameters(model),
            flops_per_sample=flat.flops(lambda: run(*inputs)),
        )

    def _ship_source(self, about: Interface, model: nn.Module, out: Path) -> bool:
        """Copy the user's source files beside the weights; whether the model loads from there, in
        another working folder and with the user's not importable.  If not, they are removed.
        """
        (out / SOURCE).write_text(self.loaded.source or "")
        origin = self.loaded.root or Path(self.job.task.path).resolve().parent
        siblings = {path.relative_to(origin).as_posix(): path for path in _siblings(origin)}
        for name, path in siblings.items():
            if name not in _RESERVED:
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                (out / name).write_bytes(path.read_bytes())
        form = Form("module", out, changed(about, standalone=True))
        inputs = self.example(1)
        with torch.no_grad():
            expected = Flat(model, about.input_kind, about.input_names)(*inputs)
        try:
            with _without_project(origin):
                twin = _loaded_from(form)
                with torch.no_grad():
                    found = Flat(twin, about.input_kind, about.input_names)(*inputs)
            same = [_close(a, b) for a, b in zip(expected, found, strict=True)]
            why = "" if all(same) else "it gives other outputs there"
        except (Exception, SystemExit) as error:  # the user's code may fail in any way there
            why = f"{type(error).__name__}: {error}"
        if clashing := set(siblings) & set(_RESERVED):
            why = f"its module {min(clashing)} has the name of a file of the artifact"
        if not why:
            return True
        print(f"the source does not stand alone, so a program is shipped: {why}", file=sys.stderr)
        for path in sorted(out.rglob("*.py")):
            path.unlink()
        return False

    def program(self, form: Form, out: Path, *, fixed: int | None = None) -> Form:
        """An exported program with a dynamic batch, or of batch size ``fixed`` or, where no dynamic
        one can be traced, the plan's.
        """
        model, about = self._flat(form)

        def trace(size: int, dynamic: bool) -> Any:
            return exported.trace(
                model,
                self.example(size, self._trace_sizes()),
                dynamic=dynamic,
                ragged=about.ragged,
                free=self._free(),
            )

        try:
            traced = trace(fixed or 2, fixed is None)
        except JobError:
            if fixed is not None:
                raise
            fixed = self.job.batch_size
            traced = trace(fixed, False)
        exported.save(traced, out / exported.PROGRAM)
        return Form("program", out, changed(about, batch_size=fixed))

    def export(self, form: Form, out: Path, *, fixed: int | None = None) -> Form:
        """An ONNX file.  Where a dynamic batch fails and none is ``fixed``: a form without a file,
        whose ``batch_size`` is the one to export at.
        """
        model, about = self._flat(form)
        size = fixed or 2  # torch.export specializes a batch of 0 or 1
        names = about.input_names, _distinct(about.output_names, about.input_names)
        path = out / onnx_file.MODEL
        inputs, free = self.example(size, self._trace_sizes()), self._free()
        try:
            onnx_file.export(
                model, inputs, path, names, dynamic=fixed is None, ragged=about.ragged, free=free
            )
            ends = dynamic_shapes.sizes(free) if free else []
            onnx_file.check(model, path, [self.example(size, end) for end in ends], names)
        except JobError:
            if fixed is not None:
                raise
            path.unlink(missing_ok=True)
            fixed = self.job.batch_size
        return Form("onnx", out, changed(about, batch_size=fixed))

    def convert(self, form: Form, out: Path) -> Form:
        """An OpenVINO model from an ONNX file."""
        openvino_ir.convert(form.folder, out)
        free = self._free()
        ends = dynamic_shapes.sizes(free) if free else [None]
        size = form.about.batch_size or 2
        samples = [[x.numpy() for x in self.example(size, end)] for end in ends]
        openvino_ir.check(form.folder, out, samples, form.about.input_names)
        return Form(OPENVINO, out, form.about)

    def _free(self) -> tuple[Dynamic, ...]:
        """Dynamic dimensions besides the batch."""
        return self.loaded.info.dynamic

    def _trace_sizes(self) -> dict[str, int] | None:
        """Sizes of the dynamic dimensions to trace at, not 0 or 1, which are specialized."""
        free = self._free()
        return dynamic_shapes.sizes(free)[1] if free else None

    def _flat(self, form: Form) -> tuple[Flat, Interface]:
        about = form.about
        model = Flat(self.module(form), about.input_kind, about.input_names).eval()
        return model, about


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to 1e-4 of the largest magnitude: kernels sum in another order when memory is aligned
    differently, which shows most in values near zero.
    """
    if a.shape != b.shape or not a.numel():
        return a.shape == b.shape
    scale = float(a.abs().max())
    return bool(torch.allclose(a, b, rtol=1e-4, atol=1e-4 * max(scale, 1e-3)))


def _loaded_from(form: Form) -> nn.Module:
    """The model as the artifact's ``load.py`` restores it."""
    text = torch_loader.loader(form)
    names: dict[str, Any] = {"__file__": str(form.folder / "load.py"), "__name__": "load"}
    exec(compile(text, "load.py", "exec"), names)
    model: nn.Module = names["_restored"](list(form.about.args))
    return model


def contract_names(loaded: LoadedTask) -> tuple[str, ...]:
    """Names of the input's fields: the task's, else ``input_0``, ``input_1``, ..."""
    names = loaded.info.input_names
    return tuple(name or f"input_{i}" for i, name in enumerate(names))


def carry_source(before: Path, after: Path) -> None:
    """Copy the source files from one module form to the next."""
    for path in sorted(before.rglob("*.py")):
        target = after / path.relative_to(before)
        target.parent.mkdir(parents=True, exist_ok=True)
        place(path, target)


def _distinct(outputs: tuple[str, ...], inputs: tuple[str, ...]) -> tuple[str, ...]:
    """Output names, made different from those of inputs: an ONNX graph has one namespace."""
    return tuple(f"{name}_out" if name in inputs else name for name in outputs)


def _siblings(folder: Path) -> list[Path]:
    """Imported modules whose files lie in the user's folder, without installed packages."""
    found = []
    for name, loaded in list(sys.modules.items()):
        file = getattr(loaded, "__file__", None)
        if not file or name.startswith("__") or name.partition(".")[0] == "autotune":
            continue
        path = Path(file)
        if path.suffix == ".py" and path.is_relative_to(folder):
            found += [] if _installed(path) else [path]
    return sorted(found)


def _installed(path: Path | str) -> bool:
    """Whether a path is in the standard library or site-packages."""
    roots = [Path(sysconfig.get_path(key)) for key in ("stdlib", "purelib", "platlib")]
    return any(Path(path).is_relative_to(root) for root in roots)


@contextlib.contextmanager
def _without_project(folder: Path) -> Iterator[None]:
    """Within: a temporary working folder, and no module of ``folder`` importable or imported."""
    path, cwd = list(sys.path), Path.cwd()
    imported = dict(sys.modules)
    inside = {"", ".", *(p for p in path if Path(p).is_relative_to(folder) and not _installed(p))}
    sys.path[:] = [p for p in path if p not in inside]
    for file in _siblings(folder):
        for name in [n for n, m in imported.items() if getattr(m, "__file__", None) == str(file)]:
            del sys.modules[name]
    try:
        with tempfile.TemporaryDirectory() as scratch:
            os.chdir(scratch)
            try:
                yield
            finally:
                os.chdir(cwd)
    finally:
        sys.path[:] = path
        sys.modules.update(imported)
