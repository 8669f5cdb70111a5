"""From trained weights to one artifact folder, stage by stage.

    task + weights -> dense -> step -> ... --export--> onnx -> step ... --convert--> ... -> write
                      `----------------- cached under cache/<key>, by content -----------------'

Each step declares the form that it takes; each conversion between forms (`forms.ROAD`) is a stage
of its own.

A stage's key hashes exactly what it depends on, so that plans share stages: a pruned model is
recovered and exported once for all its int8 variants, thread counts and runtimes.  A stage is
written to a temporary folder and renamed, so it is complete or absent.  Nothing here measures.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autotune import module_locator, plugins
from autotune.errors import JobError
from autotune.forms import ABOUT, OPENVINO, WORDS, Form, reaches, read_about
from autotune.records.job import Build, Built, Stage
from autotune.records.plan import Recipe, Step
from autotune.runtimes import RuntimeSettings
from autotune.worker.build import context
from autotune.worker.channel import Channel

_KIND = {
    "dense": "module",
    "export": "onnx",
    "export_fixed": "onnx",
    "program": "program",
    "program_fixed": "program",
    "convert": OPENVINO,
}


def run(job: Build, root: Path, channel: Channel) -> Built:
    """Build ``job.out``.

    Raises:
        JobError: unsupported, nan (recovery), or what a plug-in raises.
        PluginError: there is no such step or runtime.
    """
    return _Chain(job, root, channel).build()


class _Chain:
    """One build: its stages in order, each taken from the cache or made."""

    def __init__(self, job: Build, root: Path, channel: Channel) -> None:
        self.job = job
        self.root = root
        self.context = context.BuildContext(job, root, channel)
        self.stages: list[Stage] = []
        self.key = ""

    def build(self) -> Built:
        runtime = plugins.load("runtimes", self.job.runtime)
        self._check(runtime)
        form = self._stage("dense", self._origin(), self.context.dense)
        for step in self.job.compress:
            form = self._convert_to(form, plugins.load("compress", step.name).TAKES)
            form = self._step(form, step)
        form = self._convert_to(form, runtime.TAKES)
        if form.kind == "module":
            form = self._as_program(form, runtime)
        return self._write(form, runtime)

    def _check(self, runtime: Any) -> None:
        """Refuse, before anything is built, a step whose input form cannot be made from the form
        before it.

        Raises:
            JobError: unsupported.
        """
        have, by = "module", ""
        wanted = [
            (step.name, step.name, plugins.load("compress", step.name))
            for step in self.job.compress
        ]
        for name, words, plugin in (
            *wanted,
            (self.job.runtime, f"the runtime {self.job.runtime}", runtime),
        ):
            if not reaches(have, plugin.TAKES):
                raise JobError(
                    "unsupported",
                    f"{words} takes {WORDS[plugin.TAKES]}, but {by} before it gives "
                    f"{WORDS[have]}: there is no way back"
                    + (f"; put {name} first" if plugin is not runtime else ""),
                )
            have, by = getattr(plugin, "GIVES", have), name

    def _convert_to(self, form: Form, wanted: str) -> Form:
        """The form, converted to the ``wanted`` kind along `forms.ROAD`."""
        if form.kind == "module" and wanted != "module":
            form = self._export(form)
        if form.kind == "onnx" and wanted == OPENVINO:
            source = form
            form = self._stage("convert", (), lambda out: self.context.convert(source, out))
        return form

    def _as_program(self, form: Form, runtime: Any) -> Form:
        """The module as an exported program, where its source cannot be shipped or the runtime
        takes programs only: then traced at this plan's batch size, which compiles to faster code.
        """
        if getattr(runtime, "TRACED", False) and not form.about.ragged:
            size = self.job.batch_size
            return self._stage(
                "program_fixed", (size,), lambda out: self.context.program(form, out, fixed=size)
            )
        if form.about.standalone and not getattr(runtime, "TRACED", False):
            return form
        return self._stage("program", (), lambda out: self.context.program(form, out))

    def _origin(self) -> tuple[Any, ...]:
        task = self.job.task
        return (
            _sha256(self.root / self.job.weights),
            _sha256(module_locator.locate(task.path) or Path(task.path)),
            task.args,
            task.seed,
            *([task.params] if task.params else []),
        )

    def _training(self) -> tuple[Any, ...]:
        """What recovery training depends on; empty when there is none."""
        if self.job.recovery_epochs <= 0:
            return ()
        fields = {name: getattr(self.job.recipe, name) for name in _TRAINING_FIELDS}
        return (self.job.recovery_epochs, fields, self.job.seed)

    def _step(self, form: Form, step: Step) -> Form:
        plugin = plugins.load("compress", step.name)
        more = self._training() if getattr(plugin, "TRAINS", False) else ()
        params = {k: _canonical(v) for k, v in sorted(step.params.items())}

        def make(out: Path) -> Form:
            made: Form = plugin.apply(form, params, self.context.tools(out, step))
            if made.kind == "module":
                context.carry_source(form.folder, out)
            return made

        made = self._stage(step.name, (params, *more), make, kind=plugin.GIVES)
        return made

    def _export(self, form: Form) -> Form:
        """Export with a dynamic batch dimension or, where that fails, at this plan's batch size."""
        exported = self._stage("export", (), lambda out: self.context.export(form, out))
        if exported.about.batch_size is None:
            return exported
        size = self.job.batch_size
        return self._stage(
            "export_fixed", (size,), lambda out: self.context.export(form, out, fixed=size)
        )

    def _stage(
        self,
        name: str,
        depends: tuple[Any, ...],
        make: Callable[[Path], Form],
        *,
        kind: str | None = None,
    ) -> Form:
        """The stage's form from the cache, or made there."""
        started = time.perf_counter()
        self.key = _key(self.key, name, depends)
        folder = self.root / "cache" / self.key
        cached = (folder / ABOUT).is_file()
        if not cached:
            scratch = _scratch(folder)
            form = make(scratch)
            form.save_about()
            _publish(scratch, folder)
        wall = time.perf_counter() - started
        self.stages.append(Stage(name=name, key=self.key, cached=cached, wall_s=wall))
        return Form(kind or _KIND[name], folder, read_about(folder))

    def _write(self, form: Form, runtime: Any) -> Built:
        started = time.perf_counter()
        out = self.root / self.job.out
        scratch = _scratch(out)
        job = self.job
        runtime.write(
            form, scratch, RuntimeSettings(job.threads, job.batch_size, job.runtime_params)
        )
        files = {
            path.relative_to(scratch).as_posix(): _sha256(path)
            for path in sorted(scratch.rglob("*"))
            if path.is_file()
        }
        text = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
        (scratch / "checksums").write_text(text)
        sizes = {name: (scratch / name).stat().st_size for name in files}
        _publish(scratch, out)
        wall = time.perf_counter() - started
        served = (
            job.threads,
            job.batch_size,
            *([job.runtime_params] if job.runtime_params else []),
        )
        key = _key(self.key, self.job.runtime, served)
        self.stages.append(
            Stage(name=f"write {self.job.runtime}", key=key, cached=False, wall_s=wall)
        )
        return Built(
            artifact=self.job.out,
            sha256=hashlib.sha256(text.encode()).hexdigest(),
            files=files,
            size_bytes=sum(size for name, size in sizes.items() if name not in _OWN_FILES),
            stages=tuple(self.stages),
            parameters=form.about.parameters,
            flops_per_sample=form.about.flops_per_sample,
            recovery_s=form.about.recovery_s,
        )


_OWN_FILES = ("load.py", "artifact.json")
_HARDWARE_FIELDS = (
    "parallel",
    "ranks",
    "threads",
    "compile",
    "recompute",
    "channels_last",
    "clock_hz",
)
_TRAINING_FIELDS = tuple(name for name in Recipe.__struct_fields__ if name not in _HARDWARE_FIELDS)


def _canonical(value: Any) -> Any:
    """Floats rounded, so that 0.30000000000000004 and 0.3 are one cache key."""
    return round(value, 6) if isinstance(value, float) else value


def _key(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _scratch(target: Path) -> Path:
    """An empty folder beside ``target``, with a name of this process's own."""
    scratch = target.with_name(f".{target.name}.{os.getpid()}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    return scratch


def _publish(scratch: Path, target: Path) -> None:
    """Move a finished folder to ``target``, replacing what is there."""
    if target.exists():
        shutil.rmtree(target)
    scratch.rename(target)
