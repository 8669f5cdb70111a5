"""JSON in and out, strictly; and the published JSON Schemas.

Decoding refuses unknown keys, wrong types, non-finite numbers and newer major versions of
a schema, and names the path of the wrong leaf.
"""

from typing import Any, TypeVar

import msgspec

from autotune.errors import FormatError
from autotune.records.base import Record

R = TypeVar("R", bound=Record)


def encode(record: Record, *, indent: int = 0) -> bytes:
    """Canonical JSON: fields in declaration order, dict keys sorted."""
    data = msgspec.json.encode(record, order="sorted" if not indent else None)
    return msgspec.json.format(data, indent=indent) + b"\n" if indent else data


def decode(data: bytes, kind: type[R], *, what: str = "record") -> R:
    """Decode strictly.

    Raises:
        FormatError: not JSON, an unknown key, a wrong type (with its path), or a newer
            major version of the schema.
    """
    check_version(data, kind, what)
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise FormatError(f"{what}: {error}") from None
    except msgspec.DecodeError as error:
        raise FormatError(f"{what} is not valid JSON: {error}") from None


def schema(kind: type[Record]) -> dict[str, Any]:
    """The JSON Schema of a record."""
    return msgspec.json.schema(kind)


class _Head(msgspec.Struct):
    schema: str = ""


def check_version(data: bytes, kind: type[Record], what: str) -> None:
    """Refuse another schema, or a newer major version of it.

    Raises:
        FormatError: with the schema that was found and the one that is read.
    """
    expected = next((f.default for f in msgspec.structs.fields(kind) if f.name == "schema"), None)
    if not isinstance(expected, str):
        return
    try:
        found = msgspec.json.decode(data, type=_Head).schema
    except msgspec.DecodeError:
        return
    name, _, version = expected.partition("/")
    found_name, _, found_version = found.partition("/")
    if found_name != name:
        raise FormatError(f"{what}: schema is {found!r}, expected {expected!r}")
    if found_version.isdigit() and int(found_version) > int(version):
        raise FormatError(
            f"{what}: written by a newer autotune (schema {found!r}, this one reads up to "
            f"{expected!r}); upgrade autotune to read it"
        )
    if found != expected:
        raise FormatError(f"{what}: schema is {found!r}, expected {expected!r}")
