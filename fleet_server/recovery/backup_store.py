"""What backup and restore ask of PostgreSQL: whole tables out and in, by its own catalogue and COPY."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

from psycopg import DataError, IntegrityError, ProgrammingError
from psycopg.sql import SQL, Identifier
from sqlalchemy import text

from fleet_server.database import Connection

NOT_KEPT = ("alembic_version", "presence", "sessions", "sign_in_attempts")
"""What is true only of a moment. A session that ended after the backup must not live again with it."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A table and its columns."""

    name: str
    columns: tuple[str, ...]


def freeze(connection: Connection) -> None:
    """Let every statement of this transaction see one and the same moment; it must be the transaction's first."""
    connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))


def revision(connection: Connection) -> str | None:
    """Return the revision of the schema; None where there is none."""
    if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar() is None:
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return found


def shapes(connection: Connection) -> list[Shape]:
    """Return our tables, those that others refer to first; a partitioned table is one."""
    query = text("""
        SELECT c.relname AS name, array_agg(a.attname ORDER BY a.attnum) AS columns
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = to_regnamespace(current_schema()) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
          AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
        GROUP BY c.relname ORDER BY c.relname""")
    found = {row.name: Shape(row.name, tuple(row.columns)) for row in connection.execute(query)}
    query = text("""
        SELECT CAST(conrelid AS regclass)::text AS name, CAST(confrelid AS regclass)::text AS referred
        FROM pg_constraint WHERE contype = 'f' AND conrelid <> confrelid""")
    order: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(found, ()))
    for row in connection.execute(query):
        order.add(row.name, row.referred)
    return [found[name] for name in order.static_order() if name in found]


def _driver(connection: Connection) -> Any:
    return connection.connection.driver_connection


def copy_out(connection: Connection, shape: Shape) -> Iterator[bytes]:
    """Yield a table's rows in PostgreSQL's text form."""
    # Not `COPY table`: that refuses a partitioned one.
    query = SQL("COPY (SELECT {} FROM {}) TO STDOUT").format(
        SQL(", ").join(map(Identifier, shape.columns)), Identifier(shape.name)
    )
    with _driver(connection).cursor() as cursor, cursor.copy(query) as copy:
        for chunk in copy:
            yield bytes(chunk)


def copy_in(connection: Connection, shape: Shape, chunks: Iterable[bytes]) -> int:
    """Write rows in PostgreSQL's text form as they are, past the table's own triggers; returns how many.

    Raises ValueError for what is no such form of this table's rows.
    """
    table = Identifier(shape.name)
    query = SQL("COPY {} ({}) FROM STDIN").format(table, SQL(", ").join(map(Identifier, shape.columns)))
    with _driver(connection).cursor() as cursor:
        cursor.execute(SQL("ALTER TABLE {} DISABLE TRIGGER USER").format(table))
        try:
            with cursor.copy(query) as copy:
                for chunk in chunks:
                    copy.write(chunk)
        except (DataError, IntegrityError, ProgrammingError) as error:
            raise ValueError(str(error).splitlines()[0]) from None
        rows: int = cursor.rowcount
        cursor.execute(SQL("ALTER TABLE {} ENABLE TRIGGER USER").format(table))
    return rows


def is_empty(connection: Connection) -> bool:
    """Tell whether no table of ours holds a row."""
    return not any(
        _driver(connection).execute(SQL("SELECT 1 FROM {} LIMIT 1").format(Identifier(shape.name))).fetchone()
        for shape in shapes(connection)
        if shape.name != "alembic_version"
    )


def drop_everything(connection: Connection) -> None:
    """Drop the tables and functions of our schema; what was granted on the schema itself stays."""
    connection.execute(
        text("""
        DO $$ DECLARE found record; BEGIN
            FOR found IN SELECT oid FROM pg_class
                WHERE relnamespace = to_regnamespace(current_schema()) AND relkind IN ('r', 'p') AND NOT relispartition LOOP
                EXECUTE 'DROP TABLE IF EXISTS ' || CAST(found.oid AS regclass) || ' CASCADE';
            END LOOP;
            FOR found IN SELECT p.oid FROM pg_proc p
                WHERE p.pronamespace = to_regnamespace(current_schema())
                  AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e') LOOP
                EXECUTE 'DROP ROUTINE IF EXISTS ' || CAST(found.oid AS regprocedure) || ' CASCADE';
            END LOOP;
        END $$""")
    )


def others_connected(connection: Connection) -> int:
    """Count the other sessions in this database: a server that runs on would not notice what happens to it."""
    query = text("""
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND usesysid IS NOT NULL
          -- What kind it is stays hidden from other users.
          AND coalesce(backend_type, 'client backend') = 'client backend'""")
    return int(connection.execute(query).scalar_one())


def restart_sequences(connection: Connection) -> None:
    """Let every numbered column go on after its highest number."""
    query = text("""
        SELECT c.relname AS name, a.attname AS column,
               pg_get_serial_sequence(quote_ident(c.relname), a.attname) AS sequence
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = to_regnamespace(current_schema()) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
          AND a.attnum > 0 AND NOT a.attisdropped
          AND pg_get_serial_sequence(quote_ident(c.relname), a.attname) IS NOT NULL""")
    for row in connection.execute(query).all():
        statement = SQL("SELECT setval(%s, coalesce(max({}), 0) + 1, false) FROM {}")
        _driver(connection).execute(statement.format(Identifier(row.column), Identifier(row.name)), [row.sequence])
