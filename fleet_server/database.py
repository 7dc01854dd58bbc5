"""The one door to PostgreSQL that all features share: engine, transactions, schema."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, MetaData, create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError

__all__ = [
    "Connection",
    "Database",
    "DatabaseError",
    "DatabaseUnavailableError",
    "is_disconnect",
    "known_revisions",
    "metadata",
    "migrate",
    "unnest_insert",
    "upgrade",
]

MIGRATION_LOCK: Final = 0x64697370

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
            _psycopg(url),
            pool_size=pool_size,
            max_overflow=10,
            pool_pre_ping=True,
            connect_args={"options": options, "connect_timeout": 5},
            # Verdicts such as "repeated" read how many rows an INSERT wrote; without this it is -1.
            execution_options={"preserve_rowcount": True},
        )

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

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()


def is_disconnect(error: DBAPIError) -> bool:
    """Tell whether trying again later can help: the server is away, restarting, or chose us to end a deadlock."""
    return error.connection_invalidated or isinstance(error, OperationalError)


def _psycopg(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}" if scheme in {"postgres", "postgresql"} else url


def _unavailable(engine: Engine, error: DBAPIError) -> str:
    address = engine.url.render_as_string(hide_password=True)
    return f"database_url = {address}: no PostgreSQL answers there ({str(error.orig).strip().splitlines()[0]})"


def migrate(url: str, revision: str = "head") -> None:
    """Bring the schema of the database at `url` to a revision, the newest by default; raises DatabaseUnavailableError."""
    engine = create_engine(_psycopg(url), connect_args={"connect_timeout": 5})
    try:
        with engine.begin() as connection:
            upgrade(connection, revision)
    except OperationalError as error:
        raise DatabaseUnavailableError(_unavailable(engine, error)) from None
    finally:
        engine.dispose()


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring the schema to a revision, within the caller's transaction; a second caller waits for the end of it."""
    # Two replicas that start together must not both create the tables.
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    config = _alembic()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def known_revisions() -> list[str]:
    """Return the revisions of the schema that this version knows, newest first."""
    return [script.revision for script in ScriptDirectory.from_config(_alembic()).walk_revisions()]


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def unnest_insert(
    connection: Connection,
    table: str,
    columns: Mapping[str, str],
    rows: Sequence[Sequence[Any]],
    *,
    on_conflict: str = "",
) -> int:
    """Insert many rows in one statement: `columns` maps names to PostgreSQL types; returns how many were written.

    Ten times the rate of one row a statement, and free of the limit on parameters. Column-wise lists go as arrays.
    """
    if not rows:
        return 0
    names = ", ".join(columns)
    # psycopg's %b sends each array in binary; bytea as text would double its size.
    arrays = ", ".join(f"%b::{kind}[]" for kind in columns.values())
    statement = f"INSERT INTO {table} ({names}) SELECT * FROM unnest({arrays}) {on_conflict}"  # noqa: S608 - constants of ours
    values = tuple(list(column) for column in zip(*rows, strict=True))
    return connection.exec_driver_sql(statement, values).rowcount
