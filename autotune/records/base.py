"""The base class of every record: frozen, keyword-only, strict, finite.

A record is plain data.  ``msgspec`` checks types when it decodes but not when a record is
constructed, and writes NaN and infinity as ``null``; so every record checks here that its
numbers are finite, and ``codec`` decodes strictly.  ``kw_only`` is not inherited (nor does
mypy see that ``frozen`` is): every class repeats both.
"""

import math
from typing import Any

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all records.

    Raises:
        ValueError: a float field, or a float inside a tuple or dict field, is NaN or infinite.
    """

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if not _finite(getattr(self, name)):
                raise ValueError(
                    f"{type(self).__name__}.{name} holds a number that is not finite; "
                    "use None for a value that is missing"
                )


def option(text: str, example: str | None = None, **how: Any) -> msgspec.Meta:
    """A field's description, for the schema and as an option of the command line.

    Args:
        text: the help.
        example: a value that may be typed, or the value's name.
        how: what else `cli.options` needs: ``unit``, ``least`` and ``most`` of a number,
            ``choices`` of a text, or that it is a ``folder``.
    """
    return msgspec.Meta(description=text, extra={"example": example, **how})


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, tuple):
        return all(_finite(item) for item in value)
    if isinstance(value, dict):
        return all(_finite(item) for item in value.values())
    return True
