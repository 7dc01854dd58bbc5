"""The one door to PostgreSQL that all features share: engine, pool, transactions."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg.errors import InsufficientPrivilege, UndefinedColumn, UndefinedTable
from psycopg.pq import PGconn, Ping
from sqlalchemy import Connection, Engine, MetaData, create_engine, event, text
from sqlalchemy.exc import DBAPIError, DisconnectionError, OperationalError

__all__ = [
    "Connection",
    "Database",
    "DatabaseError",
    "DatabaseUnavailableError",
    "driver_url",
    "is_disconnect",
    "is_starting",
    "metadata",
    "refusal",
    "unavailable",
]

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


class Database:
    """A pool of connections to one PostgreSQL; every transaction is begun here."""

    def __init__(self, url: str, *, pool_size: int = 10, patient: bool = False) -> None:
        # Times come back in UTC whatever the server's default is; nothing may wait for ever, but for whole tables.
        limits = "" if patient else " -c statement_timeout=60000 -c lock_timeout=30000"
        options = f"-c timezone=UTC -c datestyle=ISO{limits}"
        self.engine: Engine = create_engine(
            driver_url(url),
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
            raise DatabaseUnavailableError(unavailable(self.engine, error)) from None

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


def driver_url(url: str) -> str:
    """Return a URL of PostgreSQL as SQLAlchemy reads it: with the driver that we use."""
    scheme, _, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}" if scheme in {"postgres", "postgresql"} else url


def is_starting(url: str) -> bool:
    """Tell whether a PostgreSQL is there that lets nobody in yet: it starts, recovers from a crash, or is about to end."""
    return PGconn.ping(_plain(url).encode()) == Ping.REJECT


def unavailable(engine: Engine, error: DBAPIError) -> str:
    """Tell, without its password, which address does not let us in, and why."""
    address = _plain(engine.url.render_as_string(hide_password=True))
    return f"database_url = {address}: expected a PostgreSQL that lets us in ({_first_line(error)})"


def refusal(error: DBAPIError) -> str:
    """Tell in one line why the database refused a command, and what to do."""
    reason = _first_line(error)
    match error.orig:
        case UndefinedTable() | UndefinedColumn():
            return f"database: expected the schema of this version; run `dispenser-fleet migrate` ({reason})"
        case InsufficientPrivilege():
            return f"database login: expected the owner of the tables, in migration_url ({reason})"
        case _ if is_disconnect(error):
            return f"database: it went away meanwhile, and nothing was changed; run the command again ({reason})"
        case _:
            return f"database: it refused this, and nothing was changed ({reason})"


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0]


def _plain(url: str) -> str:
    """A URL as people and libpq write it."""
    return url.replace("postgresql+psycopg://", "postgresql://", 1)
