"""Statements of recovery on the tables of others: the state of the server, and what was on its way when a backup was taken."""

import json
from datetime import datetime
from typing import Any

from sqlalchemy import text

from fleet_server.database import Connection


def read_state(connection: Connection, key: str) -> Any:
    """Return a value of the server's state, or None."""
    return connection.execute(text("SELECT value FROM server_state WHERE key = :key"), {"key": key}).scalar()


def write_state(connection: Connection, key: str, value: Any) -> None:
    """Keep a value of the server's state."""
    query = text("""
        INSERT INTO server_state (key, value) VALUES (:key, CAST(:value AS jsonb))
        ON CONFLICT (key) DO UPDATE SET value = excluded.value""")
    connection.execute(query, {"key": key, "value": json.dumps(value)})


def read_cursors(connection: Connection) -> dict[str, int]:
    """Return where each stream stands, by `dispenser/stream_no`."""
    rows = connection.execute(text("SELECT dispenser_id, stream_no, through_seq FROM streams ORDER BY 1, 2"))
    return {f"{row.dispenser_id}/{row.stream_no}": row.through_seq for row in rows}


def orders_unknown(connection: Connection, now: datetime) -> None:
    """Answer every unanswered order as `unknown`: it may have run, and is not sent again."""
    query = """
        UPDATE outgoing SET answered_at = :now, answer = 'unknown', answer_detail = 'the server was restored'
        WHERE channel = 'orders' AND answered_at IS NULL"""
    connection.execute(text(query), {"now": now})


def supersede_all(connection: Connection, now: datetime) -> None:
    """Answer the desired states and books that were on their way: machines may have newer ones under these numbers."""
    query = "UPDATE outgoing SET answered_at = :now, answer = 'superseded' WHERE answered_at IS NULL"
    connection.execute(text(query), {"now": now})


def forget_the_moment(connection: Connection) -> None:
    """Forget who was connected or signed in: machines announce themselves, and people learn of the epoch by signing in."""
    connection.execute(text("DELETE FROM presence"))
    connection.execute(text("DELETE FROM sessions"))


def wait(connection: Connection, seconds: float) -> None:
    """Let time pass."""
    connection.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})
