"""Databases to back up from and to restore into."""

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg

from fleet_server.clock import system_now
from fleet_server.database import Database
from fleet_server.errors import ConflictError
from fleet_server.recovery.backup import Restored, restore_backup, write_backup
from tests.fleet_server.machine import Machine

PATIENCE_S = 60


@contextmanager
def empty_database(postgres_url: str) -> Iterator[str]:
    """A database without a schema; yields its address."""
    name = f"restored_{secrets.token_hex(6)}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    head, _, _ = postgres_url.rpartition("/")
    yield f"{head}/{name}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def backed_up(database: Database, directory: Path, wall: datetime | None = None) -> Path:
    """Write a backup; returns its file."""
    return write_backup(database, directory, wall or system_now()).path


def put_back(database: Database, backup: Path, wall: datetime | None = None, **more: Any) -> Restored:
    """Restore a backup over what is there, as an operator does: with the server stopped, once PostgreSQL has seen it go."""
    database.close()
    until_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return restore_backup(database, backup, wall or system_now(), replace=True, **more)
        except ConflictError as error:
            if "stop every server" not in str(error) or time.monotonic() > until_s:
                raise
            time.sleep(0.1)


def table(database: Database, query: str) -> list[tuple[Any, ...]]:
    """Read rows as tuples."""
    with database.begin() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(query)]


def machine_of_the_day() -> Machine:
    """A machine with a visit and some vends behind it: door at 1 and 2, vends from 3 to 6."""
    return Machine().door("111111").vend().vend().vend(slot=2).vend()
