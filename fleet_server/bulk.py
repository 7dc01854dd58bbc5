"""Many rows in one statement, past SQLAlchemy: arrays as parameters, rows of several tables together, COPY."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final, NamedTuple

import psycopg
from psycopg.adapt import Dumper
from sqlalchemy.exc import DBAPIError

from fleet_server.arrays import EPOCH, KINDS, MICROSECOND, array
from fleet_server.database import Connection

FEW_ROWS: Final = 100


def run(connection: Connection, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Run a statement of the hot path past SQLAlchemy, which costs as much as all else of a small one; returns its rows."""
    with _driver_cursor(connection, statement) as cursor:
        cursor.execute(statement, values)
        return cursor.fetchall()


@contextmanager
def _driver_cursor(connection: Connection, statement: str) -> Iterator[psycopg.Cursor[tuple[Any, ...]]]:
    """A cursor of the driver itself within the connection's transaction; errors are those that SQLAlchemy raises."""
    if not connection.in_transaction():
        connection.begin()
    raw = connection.connection.driver_connection
    assert raw is not None  # noqa: S101 - it is one while the connection is open
    try:
        with raw.cursor() as cursor:
            yield cursor
    except psycopg.Error as error:
        if raw.closed:
            connection.invalidate()
        raise DBAPIError.instance(
            statement, None, error, psycopg.Error, connection_invalidated=raw.closed, dialect=connection.dialect
        ) from error


class _Array(bytes):
    """An array as PostgreSQL reads it; each type has a class of its own, by which the driver knows it."""


class _ArrayDumper(Dumper):
    """Hands an array to the driver as it is."""

    format = psycopg.pq.Format.BINARY

    def dump(self, obj: bytes) -> bytes:
        return obj


def _array_class(kind: str) -> type[_Array]:
    of_kind = type(f"{kind}_array", (_Array,), {})
    dumper = type(f"{kind}_dumper", (_ArrayDumper,), {"oid": KINDS[kind].array_oid})
    psycopg.adapters.register_dumper(of_kind, dumper)
    return of_kind


_ARRAYS: Final = {kind: _array_class(kind) for kind in KINDS}


def column(kind: str, values: Sequence[Any]) -> bytes:
    """Return values as one parameter of `run`, an array given by `%b`."""
    return _ARRAYS[kind](array(kind, values))


class Insert(NamedTuple):
    """Rows for one table: `columns` maps names to types, of those in `arrays.KINDS`."""

    table: str
    columns: Mapping[str, str]
    rows: Sequence[Sequence[Any]]
    on_conflict: str = ""
    can_copy: bool = False
    """Many rows may go by COPY: there is no conflict to settle."""


def unnest_insert(
    connection: Connection,
    table: str,
    columns: Mapping[str, str],
    rows: Sequence[Sequence[Any]],
    *,
    on_conflict: str = "",
) -> int:
    """Insert many rows in one statement: `columns` maps names to types; returns how many were written.

    Ten times the rate of one row a statement, and free of the limit on parameters. Column-wise lists go as arrays.
    """
    return insert_together(connection, [Insert(table, columns, rows, on_conflict)])


def insert_together(connection: Connection, inserts: Iterable[Insert]) -> int:
    """Insert rows of several tables, in no order of the tables; returns how many the last one wrote.

    For few rows the way to the database and back is most of what a statement costs: those go in one.
    """
    given: list[Insert] = []
    for insert in inserts:
        if insert.can_copy and len(insert.rows) > FEW_ROWS:
            _copy(connection, insert)
        elif insert.rows:
            given.append(insert)
    if not given:
        return 0
    *others, last = [_unnest(insert.table, tuple(insert.columns.items()), insert.on_conflict) for insert in given]
    ahead = ", ".join(f"w{place} AS ({statement})" for place, statement in enumerate(others))
    statement = f"WITH {ahead} {last}" if ahead else last
    values = [
        column(*each)
        for insert in given
        for each in zip(insert.columns.values(), zip(*insert.rows, strict=True), strict=True)
    ]
    with _driver_cursor(connection, statement) as cursor:
        return cursor.execute(statement, values).rowcount


def _copy(connection: Connection, insert: Insert) -> None:
    """Append rows by COPY: half the cost of an INSERT for more than FEW_ROWS, on both sides."""
    kinds = list(insert.columns.values())
    times = [place for place, kind in enumerate(kinds) if kind == "timestamptz"]
    statement = f"COPY {insert.table} ({', '.join(insert.columns)}) FROM STDIN (FORMAT binary)"
    with _driver_cursor(connection, statement) as cursor, cursor.copy(statement) as copy:
        copy.set_types(["int8" if kind == "timestamptz" else kind for kind in kinds])
        for row in insert.rows:
            values = list(row)
            for place in times:  # as PostgreSQL keeps them, which the driver can do only in text
                at = values[place]
                values[place] = at and (at - EPOCH) // MICROSECOND
            copy.write_row(values)


@lru_cache(256)
def _unnest(table: str, columns: tuple[tuple[str, str], ...], on_conflict: str) -> str:
    names = ", ".join(name for name, _ in columns)
    arrays = ", ".join(f"%b::{kind}[]" for _, kind in columns)
    return f"INSERT INTO {table} ({names}) SELECT * FROM unnest({arrays}) {on_conflict}"  # noqa: S608 - constants of ours
