"""Plug-ins: one file each, and its file name is its name.

Listing a folder imports nothing; `load` imports one file.  A plug-in's own top-level
imports are the standard library and autotune's floors below it, never torch or another library.
"""

from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

from autotune.errors import PluginError

_ROOT = Path(__file__).parent


@cache
def names(folder: str) -> tuple[str, ...]:
    """Names of the plug-ins in ``autotune/<folder>/``, sorted."""
    files = (_ROOT / folder).glob("*.py")
    return tuple(sorted(f.stem for f in files if not f.stem.startswith("_")))


def load(folder: str, name: str) -> ModuleType:
    """Import one plug-in.

    Raises:
        PluginError: there is none of that name; the message lists those there are.
    """
    if name not in names(folder):
        raise PluginError(
            f"no {folder} plug-in named {name!r}; there are: {', '.join(names(folder))}"
        )
    return import_module(f"autotune.{folder.replace('/', '.')}.{name}")
