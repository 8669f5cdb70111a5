"""Names of modules as people write them (``head``, ``head.*``, ``layers.1?.mlp``), and of files."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a module or one that it lies in is meant.

    ``head.*`` means ``head`` itself too: its own operations are not those of a child.
    """
    parts = name.split(".")
    above = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1) if name]
    wanted = [pattern.strip() for pattern in patterns]
    wanted += [pattern[:-2] for pattern in wanted if pattern.endswith(".*")]
    return any(fnmatchcase(one, pattern) for one in above for pattern in wanted)


def slug(text: str) -> str:
    """Letters, digits, dash and underscore only."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-") or "model"
