"""Writes the tree of source files into CONTRIBUTING.md, one line a file: ``python docs/tree.py``.

A file's line is the first sentence of its docstring; a folder's that of its ``__init__.py``.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "CONTRIBUTING.md"
FOLDERS = ("autotune", "benchmarks")
BEGIN, END = "<!-- tree -->\n```\n", "```\n<!-- end of tree -->"
_WIDTH, _LONG = 30, 100


def summary(path: Path) -> str:
    """The first sentence of a module's docstring, of a long one what is before the colon; empty
    without a docstring.
    """
    text = ast.get_docstring(ast.parse(path.read_text())) if path.is_file() else None
    first = " ".join((text or "").split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.?])\s", first)[0]
    return (sentence if len(sentence) <= _LONG else sentence.split(": ")[0]).rstrip(".:")


def lines(folder: Path, depth: int = 0) -> Iterator[str]:
    """The folder's line, then its files', then its folders' lines."""
    yield _line(f"{folder.name}/", summary(folder / "__init__.py"), depth)
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            yield _line(path.name, summary(path), depth + 1)
    for path in sorted(folder.iterdir()):
        if path.is_dir() and any(path.glob("*.py")):
            yield from lines(path, depth + 1)


def _line(name: str, text: str, depth: int) -> str:
    return f"{'  ' * depth + name:{_WIDTH}} {text}".rstrip()


def written(text: str) -> str:
    """CONTRIBUTING.md with today's tree in place of what is between the marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    tree = "\n".join(line for name in FOLDERS for line in lines(ROOT / name))
    return f"{before}{BEGIN}{tree}\n{END}{after}"


if __name__ == "__main__":
    FILE.write_text(written(FILE.read_text()))
