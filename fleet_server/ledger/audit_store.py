"""What the audit reads: raw rows, through none of the statements that the ledger uses."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import text

from fleet_server.database import Connection
from fleet_server.ledger.audit_chain import Stream

PIECEWISE: Final = {"stream_results": True, "yield_per": 2_000}
"""No history is ever held whole, however long it is."""

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


def histories(connection: Connection) -> Iterator[tuple[str, Iterator[tuple[str, Any]]]]:
    """Yield each place's events in the order of their anchors: ("fact", bytes) or ("operation", payload)."""
    places = (
        connection.execute(text("SELECT dispenser_id FROM facts UNION SELECT dispenser_id FROM operations ORDER BY 1"))
        .scalars()
        .all()
    )
    query = text("""
        SELECT 'fact' AS source, stream_no, seq, 0 AS step, line, CAST(NULL AS jsonb) AS payload, '' AS id
        FROM facts WHERE dispenser_id = :place AND kind IN ('vend', 'count', 'refill')
        UNION ALL
        SELECT 'operation', stream_no, seq, step + 1, NULL, payload, operation_id
        FROM operations WHERE dispenser_id = :place AND state = 'booked'
        ORDER BY stream_no, seq, step, id""")
    for place in places:
        rows = connection.execute(query, {"place": place}, execution_options=PIECEWISE)
        yield place, ((row.source, bytes(row.line) if row.line is not None else row.payload) for row in rows)


def books(connection: Connection) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield the projected book of each slot."""
    for row in connection.execute(text("SELECT dispenser_id, slot, book FROM slot_books ORDER BY 1, 2")):
        yield row.dispenser_id, row.slot, row.book


def streams(connection: Connection) -> Iterator[Stream]:
    """Yield every stream's cursor with the holes that are known."""
    holes: dict[tuple[str, int], dict[int, tuple[int, bytes]]] = defaultdict(dict)
    for row in connection.execute(text("SELECT dispenser_id, stream_no, first_seq, last_seq, digest FROM stream_gaps")):
        holes[row.dispenser_id, row.stream_no][row.first_seq] = (row.last_seq, bytes(row.digest))
    query = text("SELECT dispenser_id, stream_no, stream_id, through_seq, digest FROM streams ORDER BY 1, 2")
    for row in connection.execute(query).all():
        key = (row.dispenser_id, row.stream_no)
        yield Stream(*key, row.stream_id, row.through_seq, bytes(row.digest), holes.get(key, {}))


def lines(connection: Connection, dispenser_id: str, stream_no: int) -> Iterator[tuple[int, bytes]]:
    """Yield a stream's stored facts in the order of their numbers, a piece at a time."""
    query = text("SELECT seq, line FROM facts WHERE dispenser_id = :dispenser AND stream_no = :stream ORDER BY seq")
    rows = connection.execute(query, {"dispenser": dispenser_id, "stream": stream_no}, execution_options=PIECEWISE)
    for row in rows:
        yield row.seq, bytes(row.line)


def count(connection: Connection, table: str) -> int:
    """Count the rows of a table of ours."""
    return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())  # noqa: S608 - a constant
