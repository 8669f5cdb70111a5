"""Runs the user's file: a contract file as a whole, a plain script up to its model and data.

A *plain script* binds ``model``, ``criterion`` (or ``loss_fn``), ``X`` and ``y`` at module
level.  Its top-level statements are executed one by one until those four are bound, and no
further: its own training loop is not run.  It runs in a scratch folder, with the user's
folder on ``sys.path``, as the module ``__autotune__`` (so ``if __name__ == "__main__":``
blocks are not run).  A file inside a package is imported as its member, so that its relative
imports work.

Nothing is written beside the user's file, not even ``__pycache__``.
"""

import ast
import builtins
import hashlib
import importlib
import inspect
import os
import sys
import tempfile
import types
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from autotune import module_locator
from autotune.records.task import TaskSpec
from autotune.worker.user_file.errors import contract_error, guard
from autotune.worker.user_file.search_space import UserSpace

MODULE = "__autotune__"
LOSSES = ("criterion", "loss_fn")
_MISSING_MODULE = (
    ModuleNotFoundError,
    "install it where autotune is installed, or put it beside the file",
)
SETTINGS = ("epochs", "steps", "recipe", "higher_is_better", "pretrained")
_FUTURE = 0x1FF0000  # the bits of code.co_flags that `from __future__ import` sets


class Source(NamedTuple):
    """A loaded task: its ``names``, and the text that rebuilds its model elsewhere (if any).

    ``root`` is the folder whose files that text may import; ``params`` are those that were
    chosen for this task.
    """

    form: Literal["contract", "script", "object"]
    title: str
    where: str
    path: str | None
    names: dict[str, Any]
    text: str | None
    sha256: str | None
    warnings: tuple[str, ...] = ()
    root: Path | None = None
    params: Mapping[str, Any] = {}


def load(spec: TaskSpec) -> Source:
    """Execute the file of ``spec`` (or unpickle it) and return what it binds.

    Raises:
        ContractError: no such file, a syntax error, or an exception at import.
    """
    path = module_locator.locate(spec.path) or Path(spec.path)
    where = path.name
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise contract_error(
            str(spec.path),
            f"{kind}; a Python file that defines make_model() and train_data() is needed",
            found=_neighbours(path),
        )
    data = path.read_bytes()
    if spec.kind == "pickle":
        return _object(data, where, spec.params)
    path = path.resolve()
    root = _prepare(path, spec.args)
    tree = _parse(data, where, path)
    settings = _settings(tree)
    if is_script(tree):
        names, warnings = _prefix(tree, path, where)
        names = settings | {key: value for key, value in names.items() if key not in settings}
        text: str | None = model_text(tree, data.decode())
        form: Literal["contract", "script"] = "script"
    else:
        names, warnings, form = _whole(tree, path, where), (), "contract"
        text = _importing(names) if module_locator.member(path) else data.decode()
    sha = hashlib.sha256(data).hexdigest()
    title = path.parent.name if path.stem == "__init__" else path.stem
    params = UserSpace(names, where, str(path)).params(spec.params)
    chosen = taken(names, params)
    if text is not None and chosen:
        text += _PARTIAL.format(params=chosen)
    return Source(form, title, where, str(path), names, text, sha, warnings, root, params)


_PARTIAL = """

import functools as _functools

make_model = _functools.partial(make_model, **{params!r})  # the searched hyperparameters
"""


def taken(names: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """The chosen parameters that are ``make_model``'s: those that it names, and all of them
    where there is no ``train`` that the others could be for.
    """
    make = names.get("make_model")
    if not params or not callable(make):
        return {}
    takes = inspect.signature(make).parameters
    if not callable(names.get("train")) or any(p.kind == p.VAR_KEYWORD for p in takes.values()):
        return dict(params)
    return {name: value for name, value in params.items() if name in takes}


def _importing(names: dict[str, Any]) -> str:
    """A member of a package is shipped as an import of it, with the package beside it."""
    maker = "make_model" if names.get("make_model") is not None else "model"
    return f"from {names['__name__']} import {maker}  # noqa: F401\n"


def run_whole(spec: TaskSpec) -> dict[str, Any]:
    """Run a script once from start to end, its own training included; what it binds."""
    path = (module_locator.locate(spec.path) or Path(spec.path)).resolve()
    _prepare(path, spec.args)
    tree = _parse(path.read_bytes(), path.name, path)
    with _scratch():
        return _whole(tree, path, path.name)


def is_script(tree: ast.Module) -> bool:
    """Whether a file is a plain script rather than a contract file."""
    bound = _bound_in(tree.body)
    functions = {s.name for s in tree.body if isinstance(s, ast.FunctionDef)}
    if "make_model" in bound or functions & {"train_data", "eval_data"}:
        return False
    return _complete(bound)


def model_text(tree: ast.Module, text: str) -> str:
    """The statements that a script's ``model`` needs, as text that runs by itself.

    All top-level statements that are executed, except those that affect neither the model nor a
    kept statement: definitions, imports, assignments and calls that no kept statement uses and
    that touch nothing that is kept, and calls of ``print``.
    """
    head: list[ast.stmt] = []
    for statement in tree.body:
        head.append(statement)
        if _complete(_bound_in(head)):
            break
    modules = set(dir(builtins)).union(*(_bound(s) for s in head if _is_import(s)))
    needed: set[str] = {"model"}
    kept: list[ast.stmt] = []
    for statement in reversed(head):
        loads = _loaded(statement)
        if _is_print(statement):
            continue
        if _is_droppable(statement) or (isinstance(statement, ast.Expr) and loads - modules):
            touches = set() if _defines(statement) else (loads - modules) & needed
            if not _bound(statement) & needed and not touches:
                continue
        needed |= loads
        kept.append(statement)
    lines = text.splitlines()
    pieces = ["\n".join(lines[_first_line(s) - 1 : s.end_lineno]) for s in reversed(kept)]
    return "\n".join(pieces) + "\n"


def _prepare(path: Path, args: tuple[str, ...]) -> Path:
    """Set ``sys.argv`` and ``sys.path`` as for a script; they stay, as the user's functions may
    import or read them later, and a job has a process of its own.

    Returns:
        The folder that imports start from.
    """
    sys.dont_write_bytecode = True
    sys.argv = [str(path), *args]
    inside = module_locator.member(path)
    root = path.parent if inside is None else inside[1]
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    if str(path.parent) not in sys.path:  # inside a package by accident: siblings as before
        sys.path.append(str(path.parent))
    return root


def _parse(data: bytes, where: str, path: Path) -> ast.Module:
    try:
        return ast.parse(data, filename=str(path))
    except SyntaxError as error:
        code = (error.text or "").strip()
        raise contract_error(
            where, f"syntax error in line {error.lineno}: {error.msg}", found=f"`{code}`"
        ) from error
    except ValueError as error:
        raise contract_error(where, f"is not Python source: {error}") from error


def _module(path: Path, name: str = MODULE) -> dict[str, Any]:
    module = types.ModuleType(name)
    module.__file__ = str(path)
    if path.stem == "__init__":
        module.__path__ = [str(path.parent)]
    module.__package__ = name if path.stem == "__init__" else name.rpartition(".")[0]
    sys.modules[name] = module  # dataclasses and pickle look classes up by module
    return module.__dict__


def _whole(tree: ast.Module, path: Path, where: str) -> dict[str, Any]:
    inside = module_locator.member(path)
    name = inside[0] if inside else MODULE
    parent, _, leaf = name.rpartition(".")
    with guard(where, "the file", str(path), [_MISSING_MODULE]):
        if parent:
            importlib.import_module(parent)
            if name in sys.modules:  # its package imports it: the one there is, not a second
                return dict(vars(sys.modules[name]))
        names = _module(path, name)
        exec(compile(tree, str(path), "exec", dont_inherit=True), names)
        if parent:
            setattr(sys.modules[parent], leaf, sys.modules[name])
    return names


def _prefix(tree: ast.Module, path: Path, where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Execute statement by statement until the four names are bound."""
    names = _module(path)
    future = compile(tree, str(path), "exec", dont_inherit=True).co_flags & _FUTURE
    done = 0
    file_hint = (
        FileNotFoundError,
        "a plain script runs in a scratch folder: open Path(__file__).parent / 'file' instead",
    )
    with _scratch(), guard(where, "the script", str(path), [file_hint, _MISSING_MODULE]):
        for statement in tree.body:
            done += 1
            part = ast.Module([statement], type_ignores=[])
            exec(compile(part, str(path), "exec", flags=future, dont_inherit=True), names)
            if _complete(names):
                break
    return names, _rebound(tree.body[done:])


def _complete(names: Collection[str]) -> bool:
    return all(name in names for name in ("model", "X", "y")) and any(
        loss in names for loss in LOSSES
    )


def _rebound(rest: list[ast.stmt]) -> tuple[str, ...]:
    """Warn of statements that were not run although they change one of the four."""
    four = {"model", "X", "y", *LOSSES}
    return tuple(
        f"line {s.lineno} changes {', '.join(sorted(_bound(s) & four))} after the model, the loss "
        "and the data were complete, and was not run; move it above"
        for s in rest
        if isinstance(s, ast.Assign | ast.AnnAssign | ast.AugAssign) and _bound(s) & four
    )


def _settings(tree: ast.Module) -> dict[str, Any]:
    """Constants such as ``epochs = 20`` anywhere at top level, also below where a script stops."""
    found: dict[str, Any] = {}
    for statement in tree.body:
        names = _bound(statement) & set(SETTINGS)
        if isinstance(statement, ast.Assign) and names:
            try:
                value = ast.literal_eval(statement.value)
            except ValueError:
                continue
            found |= dict.fromkeys(names, value)
    return found


def _object(data: bytes, where: str, values: Mapping[str, Any]) -> Source:
    import cloudpickle

    with guard(where, "unpickling the Task"):
        names = cloudpickle.loads(data)
    if not isinstance(names, dict):
        raise contract_error(where, "is not a pickled Task", found=type(names).__name__)
    title = str(names.get("name") or "task")
    params = UserSpace(names, "Task", None).params(values)
    return Source("object", title, "Task", None, dict(names), None, None, params=params)


@contextmanager
def _scratch() -> Iterator[None]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="autotune-script-") as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def _bound_in(statements: list[ast.stmt]) -> set[str]:
    return set().union(*(_bound(statement) for statement in statements)) if statements else set()


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement binds in its own scope."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(a.asname or a.name).partition(".")[0] for a in statement.names}
    names: set[str] = set()
    queue: list[ast.AST] = [statement]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= _bound(node)
        elif not isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp):
            queue += ast.iter_child_nodes(node)
    return names


def _loaded(statement: ast.stmt) -> set[str]:
    return {
        node.id
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Store)
    }


def _is_import(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Import | ast.ImportFrom)


def _defines(statement: ast.stmt) -> bool:
    return _is_import(statement) or isinstance(statement, ast.FunctionDef | ast.ClassDef)


def _is_droppable(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.ImportFrom) and (
        statement.module == "__future__" or any(a.name == "*" for a in statement.names)
    ):
        return False
    if isinstance(statement, ast.Assign):  # x.y = ... and x[i] = ... change x
        flat = (ast.Name, ast.Tuple, ast.List)
        return all(isinstance(target, flat) for target in statement.targets)
    return _defines(statement) or isinstance(statement, ast.AnnAssign)


def _is_print(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Call)
        and isinstance(statement.value.func, ast.Name)
        and statement.value.func.id == "print"
    )


def _first_line(statement: ast.stmt) -> int:
    decorators = getattr(statement, "decorator_list", [])
    return int(min([statement.lineno, *(d.lineno for d in decorators)]))


def _neighbours(path: Path) -> str | None:
    try:
        names = sorted(p.name for p in path.parent.glob("*.py"))
    except OSError:
        return None
    return f"{', '.join(names[:8])} in that folder" if names else None
