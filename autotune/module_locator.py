"""Where a model file is, and the package that it belongs to.  Nothing is imported to find out.

model.py            a file by itself: its folder is importable
pkg.sub.model       found on the path, as ``python -m`` would
pkg/sub/model.py    inside packages: it is ``pkg.sub.model``, and ``pkg``'s folder is importable
"""

import ast
import sys
from collections.abc import Container
from importlib.machinery import PathFinder
from pathlib import Path

_MOST_FILES = 50


def locate(text: str, folder: Path | None = None) -> Path | None:
    """The file that a path or a dotted module name means; None where there is none.

    Args:
        text: e.g. ``model.py`` or ``pkg.model``.
        folder: searched before ``sys.path``; the working folder by default.
    """
    path = Path(text)
    if path.is_file():
        return path.resolve()
    parts = text.split(".")
    if not all(part.isidentifier() for part in parts):
        return None
    where: list[str] | None = [str(folder or Path.cwd()), *sys.path]
    spec = None
    for depth in range(len(parts)):
        if where is None:
            return None
        spec = PathFinder.find_spec(".".join(parts[: depth + 1]), where)
        if spec is None:
            return None
        found = spec.submodule_search_locations
        where = None if found is None else list(found)
    origin = None if spec is None else spec.origin
    return Path(origin).resolve() if origin and origin.endswith(".py") else None


def needed(path: Path, installed: Container[str]) -> tuple[str, ...]:
    """The modules of installed packages that a file imports whatever happens, by itself or by
    what lies beside it.

    Args:
        path: the file.
        installed: the top names of what is installed.

    Raises:
        SyntaxError: a file is no Python.  OSError: it cannot be read.
    """
    inside = member(path)
    folder = path.resolve().parent if inside is None else inside[1]
    names: dict[str, None] = {}
    seen: set[Path] = set()
    left = [path]
    while left and len(seen) < _MOST_FILES:
        one = left.pop()
        seen.add(one)
        for name in imported(one):
            if name.partition(".")[0] in installed:
                names[name] = None
                continue
            near = locate(name, folder)
            if near is not None and near.is_relative_to(folder) and near not in seen:
                left.append(near)
    return tuple(names)


def imported(path: Path, *, anywhere: bool = False) -> tuple[str, ...]:
    """The modules that a file's own import statements name, in order; ``anywhere``: those in
    functions, conditions and handlers too.

    Raises:
        SyntaxError: it is no Python.  OSError: it cannot be read.
    """
    names: list[str] = []
    whole = ast.parse(path.read_bytes())
    for node in ast.walk(whole) if anywhere else whole.body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(dict.fromkeys(names))


def member(path: Path) -> tuple[str, Path] | None:
    """A file's dotted name and the folder that holds its outermost package; None for a file in
    no package.
    """
    folder = path.resolve().parent
    names = [] if path.stem == "__init__" else [path.stem]
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        names.insert(0, folder.name)
        folder = folder.parent
    inside = len(names) > (0 if path.stem == "__init__" else 1)
    return (".".join(names), folder) if inside and all(n.isidentifier() for n in names) else None
