"""Statements of recovery on the tables of others: where streams stand, and what was on its way when a backup was taken."""

from datetime import datetime

from sqlalchemy import text

from fleet_server.database import Connection


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
