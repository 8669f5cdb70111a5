"""The user's names, read and checked: functions, switches, ``epochs`` and ``recipe``."""

from collections.abc import Callable
from typing import Any

from autotune.errors import ContractError
from autotune.records.plan import Recipe
from autotune.worker.user_file.errors import contract_error
from autotune.worker.user_file.run import Source

Function = Callable[..., Any]


def function(origin: Source, *names: str) -> Function | None:
    """The first of ``names`` that is bound.

    Raises:
        ContractError: it cannot be called.
    """
    for name in names:
        value = origin.names.get(name)
        if value is None:
            continue
        if not callable(value):
            raise contract_error(
                origin.where,
                f"{name} must be a function",
                found=f"{name} is a {type(value).__name__}",
                fix=f"def {name}(output, target):\n    return ...",
            )
        found: Function = value
        return found
    return None


def tunes(origin: Source) -> tuple[str, ...] | None:
    """The recipe fields that the user's own ``train`` uses; None where there is none.

    Raises:
        ContractError: a name that is no field of a recipe, or there is no ``train``.
    """
    value = origin.names.get("tunes", ())
    own = function(origin, "train") is not None and origin.form != "script"
    known = [
        n for n in Recipe.__struct_fields__ if n not in ("parallel", "ranks", "threads", "params")
    ]
    items = (value,) if isinstance(value, str) else tuple(value)
    if not own and items:
        raise contract_error(
            origin.where,
            "tunes lists the recipe's fields that your train() uses, but there is no train()",
            found=f"tunes = {value!r}",
            fix="def train(model, recipe, data, trial):\n    ...\n    return model",
        )
    if not set(items) <= set(known):
        raise contract_error(
            origin.where,
            f"tunes must hold some of {', '.join(known)}",
            found=f"tunes = {value!r}",
            fix='tunes = ("lr", "batch_size")',
        )
    return items if own else None


def flag(origin: Source, name: str, default: bool) -> bool:
    """A switch.

    Raises:
        ContractError: it is neither True nor False.
    """
    value = origin.names.get(name, default)
    if not isinstance(value, bool):
        raise contract_error(
            origin.where,
            f"{name} must be True or False",
            found=f"{name} = {value!r}",
            fix=f"{name} = {default}",
        )
    return value


def positive(origin: Source, name: str) -> int | None:
    """A count such as ``epochs`` or ``train_steps``, if it is given.

    Raises:
        ContractError: not a whole number of at least 1.
    """
    value = origin.names.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise contract_error(
            origin.where,
            f"{name} must be a whole number of at least 1",
            found=f"{name} = {value!r}",
            fix=f"{name} = {20 if name == 'epochs' else 1000}",
        )
    return value


def recipe(origin: Source) -> dict[str, float | int | str | bool] | None:
    """The user's present recipe: some of the fields of `records.plan.Recipe`.

    Raises:
        ContractError: another key, or a value that the field cannot hold.
    """
    value = origin.names.get("recipe")
    if value is None:
        return None
    known = [name for name in Recipe.__struct_fields__ if name != "params"]
    if not isinstance(value, dict) or not set(value) <= set(known):
        raise _wrong_recipe(origin, f"a dict with some of the keys {', '.join(known)}", value)
    import msgspec

    try:
        msgspec.convert(value, Recipe)
    except msgspec.ValidationError as error:
        raise _wrong_recipe(origin, f"legal: {error}", value) from None
    return dict(value)


def no_model(origin: Source, found: str | None) -> ContractError:
    """The error for a task without a usable model."""
    bound = sorted(
        name
        for name, value in origin.names.items()
        if not name.startswith("_")
        and getattr(value, "__module__", "") == origin.names.get("__name__", "__autotune__")
    )
    return contract_error(
        origin.where,
        "no model was found",
        found=found or (f"it defines {', '.join(bound)}" if bound else "no names of its own"),
        missing="make_model() that returns a torch.nn.Module, or a module called model",
        fix="def make_model():\n"
        "    # a fresh model each call\n"
        "    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))",
    )


def _wrong_recipe(origin: Source, rule: str, value: Any) -> ContractError:
    return contract_error(
        origin.where,
        f"recipe must be {rule}",
        found=f"recipe = {value!r}",
        fix='recipe = {"optimizer": "adam", "lr": 1e-3, "batch_size": 32}',
    )
