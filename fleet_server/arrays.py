"""Columns of values as PostgreSQL's binary arrays. Pure.

The driver could do it too, but it asks each value anew what it is, and that was a quarter of what a small transaction of ingest cost.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import Any, Final, NamedTuple

EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""From here on PostgreSQL counts time, in microseconds."""
MICROSECOND: Final = timedelta(microseconds=1)

NULL: Final = b"\xff\xff\xff\xff"
JSONB_VERSION: Final = b"\x01"

_header = Struct(">iiIii").pack
_length = Struct(">i").pack
_int4 = Struct(">ii").pack
_int8 = Struct(">iq").pack


def _texts(values: Sequence[str | None]) -> list[bytes]:
    return [NULL if value is None else _length(len(data := value.encode())) + data for value in values]


def _bytes(values: Sequence[bytes | None]) -> list[bytes]:
    return [NULL if value is None else _length(len(value)) + value for value in values]


def _jsonb(values: Sequence[str | None]) -> list[bytes]:
    return [NULL if value is None else _length(len(data := JSONB_VERSION + value.encode())) + data for value in values]


def _int4s(values: Sequence[int | None]) -> list[bytes]:
    return [NULL if value is None else _int4(4, value) for value in values]


def _int8s(values: Sequence[int | None]) -> list[bytes]:
    return [NULL if value is None else _int8(8, value) for value in values]


def _times(values: Sequence[datetime | None]) -> list[bytes]:
    return [NULL if value is None else _int8(8, (value - EPOCH) // MICROSECOND) for value in values]


def _booleans(values: Sequence[bool | None]) -> list[bytes]:
    return [NULL if value is None else _length(1) + bytes([value]) for value in values]


class Kind(NamedTuple):
    """A type by its numbers in PostgreSQL, alone and as an array, and how its values are written."""

    oid: int
    array_oid: int
    elements: Callable[[Sequence[Any]], list[bytes]]


KINDS: Final = {
    "text": Kind(25, 1009, _texts),
    "bytea": Kind(17, 1001, _bytes),
    "jsonb": Kind(3802, 3807, _jsonb),
    "int4": Kind(23, 1007, _int4s),
    "int8": Kind(20, 1016, _int8s),
    "timestamptz": Kind(1184, 1185, _times),
    "bool": Kind(16, 1000, _booleans),
}


def array(kind: str, values: Sequence[Any]) -> bytes:
    """Return an array of one dimension; None is NULL, times have a zone, and JSON comes as text."""
    oid, _, elements = KINDS[kind]
    found = elements(values)
    return _header(1, NULL in found, oid, len(values), 1) + b"".join(found)
