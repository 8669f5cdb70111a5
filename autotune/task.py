"""What to tune: a model file, or the contract's names from a notebook."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autotune import module_locator
from autotune.errors import UsageError
from autotune.patterns import slug
from autotune.records.task import TaskSpec


class Task:
    """What to tune: a file, or the contract's names as keyword arguments (from a notebook).

    Args:
        **contract: ``make_model`` or ``model``, ``train_data``, ``eval_data``, ``loss``,
            ``score``, ... as `docs/contract.md` describes them.

    Example:
        >>> task = Task(make_model=Net, train_data=lambda: train, eval_data=lambda: test)
    """

    def __init__(self, *, name: str = "task", **contract: Any) -> None:
        if not contract:
            raise UsageError(
                "Task() needs make_model=... and train_data=..., or Task.from_file(path)"
            )
        self.name = name
        self._contract = contract
        self._path: Path | None = None
        self._args: tuple[str, ...] = ()
        self._fields: dict[str, Any] = {}

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *args: str,
        weights: str | Path | None = None,
        pretrained: bool | None = None,
        retrain: bool = False,
    ) -> "Task":
        """A model file, or a module's dotted name.

        Args:
            path: e.g. ``model.py`` or ``pkg.model``.
            *args: the file's own arguments, its ``sys.argv[1:]``.
            weights: a checkpoint to load into the model, which then counts as pretrained.
            pretrained: whether the model comes trained; None: as the file says.
            retrain: train the model even where its weights look trained.

        Raises:
            UsageError: there is no such file, or no such checkpoint.
        """
        found = module_locator.locate(str(path))
        if found is None:
            raise UsageError(
                f"no file {path}: give the path of a Python file that defines a model, "
                "or the dotted name of a module"
            )
        if weights is not None and not Path(weights).is_file():
            raise UsageError(f"--weights {weights}: no such file")
        task = cls.__new__(cls)
        task.name = slug(found.stem)
        task._contract = {}
        task._path = found
        task._args = args
        checkpoint = str(Path(weights).resolve()) if weights is not None else None
        task._fields = {"weights": checkpoint, "pretrained": pretrained, "retrain": retrain}
        return task

    @contextlib.contextmanager
    def spec(self, seed: int) -> Iterator[TaskSpec]:
        """What workers load; a notebook's task lives in a private temporary file meanwhile."""
        if self._path is not None:
            yield TaskSpec(
                kind="file", path=str(self._path), args=self._args, seed=seed, **self._fields
            )
            return
        import cloudpickle

        handle, name = tempfile.mkstemp(prefix="autotune-task-", suffix=".pkl")  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                cloudpickle.dump({"name": self.name, **self._contract}, file)
            yield TaskSpec(kind="pickle", path=name, seed=seed)
        finally:
            Path(name).unlink(missing_ok=True)
