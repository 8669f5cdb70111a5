"""CONTRIBUTING.md shows the files that there are, and every file says what it is for."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_spec = importlib.util.spec_from_file_location("tree", ROOT / "docs" / "tree.py")
assert _spec is not None
assert _spec.loader is not None
tree = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tree)


def test_contributing_shows_the_tree_as_it_is() -> None:
    text = tree.FILE.read_text()
    assert tree.written(text) == text, "run `make tree`"


def test_every_file_has_a_docstring() -> None:
    files = (path for name in tree.FOLDERS for path in (ROOT / name).rglob("*.py"))
    bare = [p for p in files if p.name != "__init__.py" and not tree.summary(p)]
    assert not bare
