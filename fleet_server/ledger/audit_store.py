"""What the audit reads: raw rows, through none of the statements that the ledger uses."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import text

from fleet_server.database import Connection

Key = tuple[str, str, str]


def freeze(connection: Connection) -> None:
    """Let every statement of this transaction see one and the same moment; it must be the transaction's first."""
    connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))


def balances(connection: Connection) -> dict[Key, int]:
    """Return the projection."""
    rows = connection.execute(text("SELECT account, product, lot, units FROM balances WHERE units <> 0"))
    return {(row.account, row.product, row.lot): row.units for row in rows}


def moved(connection: Connection) -> dict[Key, int]:
    """Return the sum of all movements."""
    rows = connection.execute(
        text("""
        SELECT account, product, lot, sum(units) AS units FROM (
            SELECT target AS account, product, lot, units FROM movements
            UNION ALL SELECT source, product, lot, -units FROM movements) AS ends
        GROUP BY account, product, lot HAVING sum(units) <> 0""")
    )
    return {(row.account, row.product, row.lot): int(row.units) for row in rows}


def histories(connection: Connection) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Yield each place's events in the order of their anchors: ("fact", bytes) or ("operation", payload)."""
    places = connection.execute(
        text("SELECT dispenser_id FROM facts UNION SELECT dispenser_id FROM operations ORDER BY 1")
    ).scalars()
    query = text("""
        SELECT 'fact' AS source, stream_no, seq, 0 AS step, line, CAST(NULL AS jsonb) AS payload, '' AS id
        FROM facts WHERE dispenser_id = :place AND kind IN ('vend', 'count', 'refill')
        UNION ALL
        SELECT 'operation', stream_no, seq, step + 1, NULL, payload, operation_id
        FROM operations WHERE dispenser_id = :place AND state = 'booked'
        ORDER BY stream_no, seq, step, id""")
    for place in places:
        rows = connection.execute(query, {"place": place})
        yield place, [(row.source, bytes(row.line) if row.line is not None else row.payload) for row in rows]


def books(connection: Connection) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield the projected book of each slot."""
    for row in connection.execute(text("SELECT dispenser_id, slot, book FROM slot_books ORDER BY 1, 2")):
        yield row.dispenser_id, row.slot, row.book


def broken_streams(connection: Connection) -> list[tuple[str, int, int, int]]:
    """Return streams whose facts, stored or known to be lost, are not 1 to the cursor: (dispenser, stream_no, through_seq, facts)."""
    query = text("""
        SELECT s.dispenser_id, s.stream_no, s.through_seq, sum(p.facts) AS known
        FROM streams s LEFT JOIN (
            SELECT dispenser_id, stream_no, count(*) AS facts, min(seq) AS first, max(seq) AS last FROM facts GROUP BY 1, 2
            UNION ALL SELECT dispenser_id, stream_no, last_seq - first_seq + 1, first_seq, last_seq FROM stream_gaps
        ) AS p ON p.dispenser_id = s.dispenser_id AND p.stream_no = s.stream_no
        GROUP BY s.dispenser_id, s.stream_no, s.through_seq
        HAVING coalesce(sum(p.facts), 0) <> s.through_seq OR coalesce(min(p.first), 1) <> 1
            OR coalesce(max(p.last), 0) <> s.through_seq
        ORDER BY 1, 2""")
    return [
        (row.dispenser_id, row.stream_no, row.through_seq, int(row.known or 0)) for row in connection.execute(query)
    ]


def count(connection: Connection, table: str) -> int:
    """Count the rows of a table of ours."""
    return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())  # noqa: S608 - a constant
