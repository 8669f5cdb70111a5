"""Text for terminals: without control characters, wrapped, cut, in columns."""

import re
import textwrap
from collections.abc import Sequence

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def printable(text: str) -> str:
    """Every character that is not printable becomes a space; line breaks and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)


def one_line(text: str) -> str:
    """Without control characters and line breaks."""
    return _CONTROL.sub(" ", text).strip()


def wrap(
    text: str,
    width: int,
    indent: str = "",
    first: str | None = None,
    *,
    break_long_words: bool = False,
) -> list[str]:
    """Lines of at most ``width`` columns, which only a longer word exceeds.

    ``first`` is the indent of the first line, where it differs.
    """
    return textwrap.wrap(
        one_line(text),
        width,
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=break_long_words,
    )


def cut(text: str, width: int) -> str:
    """At most ``width`` columns, with an ellipsis where something is missing."""
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """One line a row, each column as wide as its widest cell."""
    if not rows:
        return []
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)).rstrip()
        for row in rows
    ]
