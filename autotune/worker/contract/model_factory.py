"""Makes the user's model.

make_model(**params)  --called-----------------------------> a model
model                 --copied, re-initialised where fresh--> a model
"""

import copy
from typing import Any

from torch import nn

from autotune.worker.user_file import run
from autotune.worker.user_file.errors import guard
from autotune.worker.user_file.names import no_model


class ModelFactory:
    """Makes the model of one file."""

    def __init__(self, origin: run.Source) -> None:
        self._origin = origin
        self._prototype: nn.Module | None = None

    def model(self, *, fresh: bool) -> nn.Module:
        """A model; of a module-level one a copy, re-initialised where it is to be ``fresh``.

        Raises:
            ContractError: no model, making it raises, or it is no `torch.nn.Module`.
        """
        origin = self._origin
        make = origin.names.get("make_model")
        if make is None:
            return self._copy_of(origin.names.get("model"), fresh=fresh)
        if not callable(make):
            raise no_model(origin, f"make_model is a {type(make).__name__}")
        params = run.taken(origin.names, origin.params)
        listed = ", ".join(f"{name}={value!r}" for name, value in params.items())
        with guard(origin.where, f"make_model({listed})", origin.path):
            model = make(**params)
        if not isinstance(model, nn.Module):
            raise no_model(origin, f"make_model() returned a {type(model).__name__}")
        return model

    def _copy_of(self, model: Any, *, fresh: bool) -> nn.Module:
        if not isinstance(model, nn.Module):
            found = None if model is None else f"model is a {type(model).__name__}"
            raise no_model(self._origin, found)
        if self._prototype is None:
            self._prototype = model
        copied = copy.deepcopy(self._prototype)
        if fresh:
            reinitialise(copied)
        return copied


def reinitialise(model: nn.Module) -> None:
    """Draw new weights in every module that has ``reset_parameters``."""
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None) or getattr(
            module, "_reset_parameters", None
        )
        if callable(reset):
            reset()
