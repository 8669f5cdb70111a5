"""Checkpoint files: read without unpickling code, nested state dicts found, prefixes stripped.

    file ── safetensors | torch.load(weights_only=True) ── a dict, perhaps nested
         ── "state_dict" | "model" | "ema" ... ── names ── prefixes off ── the model's own names

What is not understood is refused, never guessed: missing or unexpected keys, other shapes, a
pickled module.  Nothing in the file is ever executed.
"""

import pickletools
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from autotune.errors import ContractError
from autotune.worker.user_file.errors import contract_error

NESTING_KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "ema",
    "ema_state_dict",
    "state_dict_ema",
    "model_ema",
)
"""Keys under which a state dict may lie; the first found is taken."""
PREFIXES = ("module.", "model.", "_orig_mod.")
_DEEPEST = 3
_LISTED = 6


class Stripped(NamedTuple):
    """A state dict under the model's own names, and the prefixes removed to get there."""

    state: dict[str, Any]
    prefixes: tuple[str, ...]


def load_into(model: nn.Module, path: Path) -> tuple[str, ...]:
    """Load a checkpoint file into a fresh model.

    Returns:
        What was found and stripped, in words.

    Raises:
        ContractError: no such file, no state dict in it, a pickled object, or names or shapes
            that do not fit the model.
    """
    where = path.name
    found, nest = find(read(path), where)
    own = model.state_dict(keep_vars=True)
    fit = strip(found, own)
    _check_names(where, fit, own)
    _check_shapes(where, fit.state, own)
    try:
        model.load_state_dict(fit.state, strict=False)
    except (RuntimeError, TypeError) as error:
        raise contract_error(where, f"does not fit the model: {error}") from None
    notes = [f"{where}: the state dict under {nest!r} was taken"] if nest else []
    if fit.prefixes:
        listed = ", ".join(repr(prefix) for prefix in fit.prefixes)
        notes.append(f"{where}: stripped {listed} from the names of the weights")
    return tuple(notes)


def read(path: Path) -> Any:
    """What a checkpoint file holds; never unpickles more than tensors and plain containers.

    Raises:
        ContractError: it cannot be read so.
    """
    if not path.is_file():
        raise contract_error(
            str(path.name),
            "there is no such checkpoint file",
            found=_neighbours(path),
            missing="a .safetensors file, or a state dict written by torch.save",
        )
    if _is_safetensors(path):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(str(path))
        except SafetensorError as error:
            raise contract_error(path.name, f"is a damaged safetensors file: {error}") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from None


def find(value: Any, where: str) -> tuple[dict[str, Any], str | None]:
    """The state dict in a checkpoint, and the path of keys that leads to it (None: itself).

    Raises:
        ContractError: there is none.
    """
    trail: list[str] = []
    found = value
    for _ in range(_DEEPEST + 1):
        if _is_state(found):
            return dict(found), ".".join(trail) or None
        if not isinstance(found, Mapping):
            break
        key = next((k for k in NESTING_KEYS if isinstance(found.get(k), Mapping)), None)
        if key is None:
            break
        trail.append(key)
        found = found[key]
    keys = ", ".join(repr(str(k)) for k in list(value)[:8]) if isinstance(value, Mapping) else None
    raise contract_error(
        where,
        "holds no state dict",
        found=f"the keys {keys}" if keys else f"a {type(value).__name__}",
        missing=f"names with tensors, at the top or under one of {', '.join(NESTING_KEYS[:8])}",
        fix='torch.save(model.state_dict(), "weights.pt")',
    )


def strip(state: Mapping[str, Any], own: Iterable[str]) -> Stripped:
    """Remove prefixes as long as more names become the model's own."""
    wanted = set(own)
    best = Stripped(dict(state), ())
    queue, seen = [best], {frozenset(state)}
    while queue:
        fit = queue.pop(0)
        if len(wanted & set(fit.state)) > len(wanted & set(best.state)):
            best = fit
        if len(fit.prefixes) >= _DEEPEST:
            continue
        for prefix in PREFIXES:
            shorter = _without(fit.state, prefix)
            if shorter is not None and frozenset(shorter) not in seen:
                seen.add(frozenset(shorter))
                queue.append(Stripped(shorter, (*fit.prefixes, prefix)))
    return best


def _without(state: Mapping[str, Any], prefix: str) -> dict[str, Any] | None:
    """Without ``prefix`` (``_orig_mod.`` may stand inside names); None where nothing changes or
    two names would become one.
    """
    names = {
        name: name.replace(prefix, "") if prefix == "_orig_mod." else name.removeprefix(prefix)
        for name in state
    }
    if all(name == new for name, new in names.items()) or len(set(names.values())) < len(names):
        return None
    return {names[name]: value for name, value in state.items()}


def _is_state(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value or not all(isinstance(k, str) for k in value):
        return False
    tensors = sum(isinstance(item, Tensor) for item in value.values())
    nested = sum(isinstance(item, Mapping) for item in value.values())
    return tensors > 0 and nested == 0 and 2 * tensors >= len(value)


def _check_names(where: str, fit: Stripped, own: Mapping[str, Any]) -> None:
    loaded = {id(own[name]) for name in fit.state if name in own}  # tied weights: one is enough
    missing = [name for name in own if name not in fit.state and id(own[name]) not in loaded]
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    left = [name for name in fit.state if name not in own]
    if not missing and not left:
        return
    raise contract_error(
        where,
        "the names of its weights are not those of the model",
        found=f"{len(left)} unexpected: {_list(left)}" if left else None,
        missing=f"{len(missing)} of {len(own)}: {_list(missing)}" if missing else None,
        hint="make_model() must build the model that the file was saved from"
        + (", or delete the unexpected names and save it again" if not missing else ""),
    )


def _check_shapes(where: str, state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    wrong = [
        f"{name} {list(value.shape)} where the model has {list(own[name].shape)}"
        for name, value in state.items()
        if isinstance(value, Tensor)
        and isinstance(own.get(name), Tensor)
        and value.shape != own[name].shape
    ]
    if wrong:
        raise contract_error(
            where,
            "its weights have other shapes than the model's",
            found=_list(wrong),
            hint="make_model() must build the model that the file was saved from",
        )


def _unreadable(path: Path, error: Exception) -> ContractError:
    """What the file is instead of weights, and the lines that convert it."""
    name, safe = path.name, f"{path.stem}-weights.pt"
    top = _top_object(path)
    if top == "script":
        what, line = "is a TorchScript archive", f'model = torch.jit.load("{name}")'
    elif top == "dict":
        what = f"holds more than tensors and plain values: {_unsupported(error)}"
        raise_line = f'checkpoint = torch.load("{name}", weights_only=False)'
        return contract_error(
            name,
            what,
            missing="a file that torch.load(weights_only=True) can read",
            fix=f"{raise_line}  # runs code in the file: only if you trust it\n"
            f'torch.save(checkpoint["state_dict"], "{safe}")  # or the key that holds the weights',
        )
    elif top == "object":
        what = f"is a pickled module, not weights: {_unsupported(error)}"
        line = f'model = torch.load("{name}", weights_only=False)'
    else:
        return contract_error(
            name,
            "is neither a safetensors file nor one that torch.save wrote",
            found=f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}",
            fix=f'torch.save(model.state_dict(), "{safe}")',
        )
    return contract_error(
        name,
        what,
        missing="a state dict; unpickling an object would run whatever code the file holds",
        fix=f"{line}  # runs code in the file: only if you trust it\n"
        f'torch.save(model.state_dict(), "{safe}")',
    )


def _unsupported(error: Exception) -> str:
    """The class that ``weights_only`` refused, out of torch's long message."""
    text = str(error)
    _, found, rest = text.partition("GLOBAL ")
    return rest.split(" ")[0] if found else "its contents need code to be read"


def _top_object(path: Path) -> str | None:
    """What a file of torch.save's holds at its top (``dict``, ``object``), or ``script``; looked
    up in the pickle's instructions without running them.
    """
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                return _kind(file.read(1 << 20))
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any(name.endswith("/constants.pkl") for name in names):
                return "script"
            pickled = next((name for name in names if name.endswith("data.pkl")), None)
            return None if pickled is None else _kind(archive.read(pickled))
    except (OSError, zipfile.BadZipFile, ValueError):
        return None


def _kind(data: bytes) -> str | None:
    if data[:1] != b"\x80":  # a pickle of protocol 2 or later
        return None
    for code, argument, _ in pickletools.genops(data):
        if code.name in ("PROTO", "FRAME", "MEMOIZE", "BINPUT", "MARK"):
            continue
        if code.name == "GLOBAL":
            return "dict" if "OrderedDict" in str(argument) else "object"
        return "dict" if code.name in ("EMPTY_DICT", "DICT") else "object"
    return None


def _is_safetensors(path: Path) -> bool:
    """By the header: eight bytes of length, then JSON."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _neighbours(path: Path) -> str | None:
    kinds = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
    try:
        names = sorted(p.name for p in path.parent.iterdir() if p.suffix in kinds)
    except OSError:
        return None
    return f"{', '.join(names[:8])} in that folder" if names else None
