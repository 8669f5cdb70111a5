"""Model files of tests: written, loaded, inspected and trained in one call each."""

from pathlib import Path
from typing import Any

from autotune.records.job import Build, Built, Inspect, Inspection, Train, Trained
from autotune.records.plan import Recipe
from autotune.records.task import TaskSpec
from autotune.worker.build import build
from autotune.worker.channel import Channel, NullChannel
from autotune.worker.survey import inspect
from autotune.worker.training import train


class StopsAt(NullChannel):
    """Says stop at a rung."""

    def __init__(self, last: float) -> None:
        super().__init__()
        self.last = last

    def report(self, step: float, value: float) -> bool:
        return super().report(step, value) and step < self.last


def write(root: Path, text: str, **spec: Any) -> TaskSpec:
    """The text as a task, ``model.py`` in ``root``."""
    (root / "model.py").write_text(text)
    return TaskSpec(kind="file", path=str(root / "model.py"), **spec)


def inspected(root: Path, text: str, **spec: Any) -> Inspection:
    """What the inspection of a text finds; it writes to ``root/work``."""
    return inspect.run(Inspect(task=write(root, text, **spec)), root / "work", NullChannel())


def built(root: Path, spec: TaskSpec, **more: Any) -> Built:
    """A build of the inspected weights without compression; ``more`` are fields of `Build`."""
    job: dict[str, Any] = {
        "weights": "weights.safetensors", "compress": (), "runtime": "eager", "threads": 1,
        "batch_size": 1, "seed": 0, "recipe": Recipe(), "recovery_epochs": 0, "out": "out",
    }  # fmt: skip
    return build.run(Build(task=spec, **job | more), root, NullChannel())


def predict(folder: Path) -> Any:
    """The artifact's ``predict``, by its own loader."""
    names: dict[str, Any] = {"__file__": str(folder / "load.py"), "__name__": "load"}
    exec((folder / "load.py").read_text(), names)
    return names["load"]()


def trained(
    root: Path, text: str, channel: Channel | None, recipe: dict[str, Any], **job: Any
) -> Trained:
    """What a training of a text gives; ``job`` are fields of `Train`."""
    spec = write(root, text, **job.pop("spec", {}))
    return train.run(
        Train(task=spec, recipe=Recipe(**recipe), **job), root, channel or NullChannel()
    )
