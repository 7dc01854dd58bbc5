"""The one door to PostgreSQL that all features share: engine, transactions, schema."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import psycopg
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.adapt import Dumper
from psycopg.errors import DuplicateObject, InsufficientPrivilege, UniqueViolation
from sqlalchemy import Connection, Engine, MetaData, create_engine, event, text
from sqlalchemy.exc import DBAPIError, DisconnectionError, OperationalError, ProgrammingError

from fleet_server.arrays import EPOCH, KINDS, MICROSECOND, array
from fleet_server.privileges import APPLICATION_ROLE, grants

__all__ = [
    "Connection",
    "Database",
    "DatabaseError",
    "DatabaseUnavailableError",
    "SchemaError",
    "copy_database",
    "drop_database",
    "is_disconnect",
    "is_migrated",
    "known_revisions",
    "metadata",
    "migrate",
    "unnest_insert",
    "upgrade",
]

MIGRATION_LOCK: Final = 0x64697370

FEW_ROWS: Final = 100

TRUSTED_S: Final = 1.0
"""A connection that rested for less than this is still there, or is missed by the statement that then fails."""

DatabaseError = DBAPIError
"""What the database or the way to it refuses."""

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
"""Each feature's store.py defines its tables here."""


class DatabaseUnavailableError(RuntimeError):
    """PostgreSQL cannot be reached or refuses us; the text names the address without its password."""


class SchemaError(RuntimeError):
    """The schema is not what this server needs, and this user may not change it."""


class Database:
    """A pool of connections to one PostgreSQL; every transaction is begun here."""

    def __init__(self, url: str, *, pool_size: int = 10, patient: bool = False) -> None:
        # Times come back in UTC whatever the server's default is; nothing may wait for ever, but for whole tables.
        limits = "" if patient else " -c statement_timeout=60000 -c lock_timeout=30000"
        options = f"-c timezone=UTC -c datestyle=ISO{limits}"
        self.engine: Engine = create_engine(
            _psycopg(url),
            pool_size=pool_size,
            max_overflow=10,
            pool_use_lifo=True,
            connect_args={"options": options, "connect_timeout": 5},
            # An error that is logged names the statement, not what was to be stored.
            hide_parameters=True,
            # Verdicts such as "repeated" read how many rows an INSERT wrote; without this it is -1.
            execution_options={"preserve_rowcount": True},
        )
        _try_after_rest(self.engine)

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """One transaction: committed at the end of the block, rolled back by an exception."""
        with self.engine.begin() as connection:
            yield connection

    def open(self) -> Connection:
        """One transaction that its owner ends: `commit()` keeps it, `close()` gives the connection back."""
        return self.engine.connect()

    def check(self) -> None:
        """Raise DatabaseUnavailableError when no query can be answered now."""
        try:
            with self.engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        except OperationalError as error:
            raise DatabaseUnavailableError(_unavailable(self.engine, error)) from None

    def is_restricted(self) -> bool:
        """Tell whether our login can change or delete nothing that is to stay as it was written."""
        query = text("""
            SELECT bool_or(has_table_privilege(name, 'UPDATE, DELETE, TRUNCATE'))
            FROM unnest(ARRAY['facts', 'forked_facts', 'movements', 'stream_gaps', 'audit_log']) AS name""")
        with self.engine.connect() as connection:
            return not connection.execute(query).scalar_one()

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()


def _try_after_rest(engine: Engine) -> None:
    """Have a connection that has rested tried out before it is used: the server may have restarted meanwhile.

    The engine's own `pool_pre_ping` would ask before every transaction, which costs as much as a short one.
    """

    @event.listens_for(engine, "checkin")
    def note(_connection: object, record: Any) -> None:
        record.info["rests_since_s"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def try_out(connection: Any, record: Any, _proxy: object) -> None:
        rests_since_s = record.info.get("rests_since_s")
        if rests_since_s is None or time.monotonic() - rests_since_s < TRUSTED_S:
            return
        try:
            connection.execute("")
            connection.rollback()
        except psycopg.Error as error:
            raise DisconnectionError("a connection that rested is gone") from error


def is_disconnect(error: DBAPIError) -> bool:
    """Tell whether trying again later can help: the server is away, restarting, or chose us to end a deadlock."""
    return error.connection_invalidated or isinstance(error, OperationalError)


def _psycopg(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}" if scheme in {"postgres", "postgresql"} else url


def _unavailable(engine: Engine, error: DBAPIError) -> str:
    address = engine.url.render_as_string(hide_password=True)
    return f"database_url = {address}: no PostgreSQL answers there ({str(error.orig).strip().splitlines()[0]})"


def migrate(url: str, revision: str = "head") -> str | None:
    """Bring the schema to a revision, the newest by default, and give the application its rights on it.

    The user of `url` is to be the owner of the tables. Returns what is left for an administrator of the database to do,
    None when nothing is. Raises DatabaseUnavailableError and SchemaError.
    """
    with _as_owner(url) as connection:
        return upgrade(connection, revision)


def is_migrated(url: str) -> bool:
    """Tell whether the schema is the one that this version of the server needs."""
    with _as_owner(url) as connection:
        return _is_newest(connection)


@contextmanager
def _as_owner(url: str) -> Iterator[Connection]:
    engine = create_engine(_psycopg(url), connect_args={"connect_timeout": 5})
    try:
        with engine.begin() as connection:
            yield connection
    except OperationalError as error:
        raise DatabaseUnavailableError(_unavailable(engine, error)) from None
    except ProgrammingError as error:
        if not isinstance(error.orig, InsufficientPrivilege):
            raise
        reason = str(error.orig).strip().splitlines()[0]
        address = engine.url.render_as_string(hide_password=True)
        raise SchemaError(f"migration_url = {address}: expected the owner of the tables ({reason})") from None
    finally:
        engine.dispose()


def upgrade(connection: Connection, revision: str = "head") -> str | None:
    """Do what `migrate` does within the caller's transaction; a second caller waits for the end of it."""
    # Two replicas that start together must not both create the tables.
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    config = _alembic()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
    if not _is_newest(connection):
        return None
    if not _make_application_role(connection):
        user = connection.execute(text("SELECT current_user")).scalar_one()
        return (
            f"the schema is up to date, but {user} may not create roles and there is no role {APPLICATION_ROLE}: have an "
            f"administrator run CREATE ROLE {APPLICATION_ROLE} NOLOGIN, then migrate again"
        )
    for statement in grants(connection.execute(text("SELECT current_schema()")).scalar_one()):
        connection.execute(text(statement))
    return None


def known_revisions() -> list[str]:
    """Return the revisions of the schema that this version knows, newest first."""
    return [script.revision for script in ScriptDirectory.from_config(_alembic()).walk_revisions()]


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _is_newest(connection: Connection) -> bool:
    return MigrationContext.configure(connection).get_current_revision() == known_revisions()[0]


def _make_application_role(connection: Connection) -> bool:
    """Make the application's role unless it is there; False when we may not."""
    there = text("SELECT 1 FROM pg_roles WHERE rolname = :name")
    if connection.execute(there, {"name": APPLICATION_ROLE}).first() is not None:
        return True
    try:
        with connection.begin_nested():
            connection.execute(text(f"CREATE ROLE {APPLICATION_ROLE} NOLOGIN"))
    except DBAPIError as error:
        if isinstance(error.orig, InsufficientPrivilege):
            return False
        # Roles belong to the whole server: another database of it was quicker.
        if not isinstance(error.orig, DuplicateObject | UniqueViolation):
            raise
    return True


def copy_database(url: str, name: str) -> str:
    """Make a database as a copy of that of `url`, whose user may do that and which nobody uses; returns the URL of the copy."""
    parts = urlsplit(url)
    with _maintenance(url) as connection:
        connection.execute(text(f'CREATE DATABASE "{name}" TEMPLATE "{parts.path[1:]}"'))
    return parts._replace(path=f"/{name}").geturl()


def drop_database(url: str) -> None:
    """Throw the database of `url` away, whoever uses it."""
    with _maintenance(url) as connection:
        connection.execute(text(f'DROP DATABASE "{urlsplit(url).path[1:]}" WITH (FORCE)'))


@contextmanager
def _maintenance(url: str) -> Iterator[Connection]:
    """Databases are made and dropped from another one, outside of transactions."""
    engine = create_engine(_psycopg(urlsplit(url)._replace(path="/postgres").geturl()), isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            yield connection
    except OperationalError as error:
        raise DatabaseUnavailableError(_unavailable(engine, error)) from None
    finally:
        engine.dispose()


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
