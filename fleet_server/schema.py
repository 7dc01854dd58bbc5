"""The schema, and databases as wholes: what their owner does, never the application."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.errors import DuplicateObject, InsufficientPrivilege, UniqueViolation
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from fleet_server.database import Connection, DatabaseUnavailableError, driver_url, unavailable
from fleet_server.privileges import APPLICATION_ROLE, grants

MIGRATION_LOCK: Final = 0x64697370


class SchemaError(RuntimeError):
    """The schema is not what this server needs, and this user may not change it."""


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


def check_migrated(url: str) -> None:
    """Raise SchemaError unless the schema is the one that this version of the server needs."""
    if not is_migrated(url):
        raise SchemaError("database: expected the schema of this version; run `dispenser-fleet migrate`")


@contextmanager
def _as_owner(url: str) -> Iterator[Connection]:
    engine = create_engine(driver_url(url), connect_args={"connect_timeout": 5})
    try:
        with engine.begin() as connection:
            yield connection
    except OperationalError as error:
        raise DatabaseUnavailableError(unavailable(engine, error)) from None
    except ProgrammingError as error:
        if not isinstance(error.orig, InsufficientPrivilege):
            raise
        reason = str(error.orig).strip().splitlines()[0]
        address = engine.url.render_as_string(hide_password=True).replace("+psycopg", "", 1)
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
    engine = create_engine(driver_url(urlsplit(url)._replace(path="/postgres").geturl()), isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            yield connection
    except OperationalError as error:
        raise DatabaseUnavailableError(unavailable(engine, error)) from None
    finally:
        engine.dispose()
