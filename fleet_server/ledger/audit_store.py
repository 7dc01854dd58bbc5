"""What the audit reads: raw rows, through none of the statements that the ledger uses."""

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import text

from fleet_server.database import Connection
from fleet_server.ledger.audit_chain import Stream

PIECEWISE: Final = {"stream_results": True, "yield_per": 2_000}
"""No history is ever held whole, however long it is."""

Key = tuple[str, str, str]
Anchor = tuple[int, int, int]
"""(stream_no, seq, step)."""


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


class Cause(NamedTuple):
    """What a movement names as its cause, with the place, the time and the actor that it has from it."""

    name: str
    anchor: Anchor | None
    at: datetime
    actor: str


class Event(NamedTuple):
    """The bytes of a fact, or the payload of an operation, as a cause of movements."""

    value: bytes | dict[str, Any]
    cause: Cause


class Move(NamedTuple):
    """What the audit compares of a movement."""

    cause: Cause
    slot: int | None
    source: str
    target: str
    pack: tuple[str, str]
    units: int


def _anchor(row: Any) -> Anchor | None:
    return None if row.seq is None else (row.stream_no, row.seq, row.step)


def histories(connection: Connection) -> Iterator[tuple[str, Iterator[Event]]]:
    """Yield each place's events in the order of their anchors."""
    query = text("SELECT dispenser_id FROM facts UNION SELECT dispenser_id FROM operations ORDER BY 1")
    for place in connection.execute(query).scalars().all():
        yield place, history(connection, place)


def history(connection: Connection, place: str) -> Iterator[Event]:
    """Yield one place's events in the order of their anchors."""
    query = text("""
        SELECT stream_no, seq, 0 AS step, line, CAST(NULL AS jsonb) AS payload, CAST('' AS text) COLLATE "C" AS id,
               corrected_at AS at, 'dispenser:' || dispenser_id AS actor
        FROM facts WHERE dispenser_id = :place AND kind IN ('vend', 'count', 'refill', 'stock_level')
        UNION ALL
        SELECT stream_no, seq, step + 1, NULL, payload, operation_id COLLATE "C", entered_at, actor
        FROM operations WHERE dispenser_id = :place AND state = 'booked'
        ORDER BY stream_no, seq, step, id""")
    for row in connection.execute(query, {"place": place}, execution_options=PIECEWISE):
        name = f"operation:{row.id}" if row.line is None else f"fact:{place}/{row.stream_no}/{row.seq}"
        yield Event(row.payload if row.line is None else bytes(row.line), Cause(name, _anchor(row), row.at, row.actor))


def moves(connection: Connection, place: str | None = None) -> Iterator[tuple[str, Move]]:
    """Yield (place, movement) of all, or of one place."""
    query = text("""
        SELECT place, source, target, product, lot, units, cause, at, actor, slot, stream_no, seq, step FROM movements
        WHERE CAST(:place AS text) IS NULL OR place = :place""")
    for row in connection.execute(query, {"place": place}, execution_options=PIECEWISE):
        cause = Cause(row.cause, _anchor(row), row.at, row.actor)
        yield row.place, Move(cause, row.slot, row.source, row.target, (row.product, row.lot), row.units)


def books(connection: Connection) -> Iterator[tuple[tuple[str, int], dict[str, Any], Anchor]]:
    """Yield the projected book of each slot, with the anchor of its last entry."""
    query = text("SELECT dispenser_id, slot, book, stream_no, seq, step FROM slot_books ORDER BY 1, 2")
    for row in connection.execute(query):
        yield (row.dispenser_id, row.slot), row.book, (row.stream_no, row.seq, row.step)


def doors(connection: Connection, dispenser_id: str, stream_no: int) -> list[tuple[int, str, int | None]]:
    """Return the projected door sessions of a stream: (opened at fact, code, closed at fact)."""
    query = text("""
        SELECT opened_seq, session, closed_seq FROM door_sessions
        WHERE dispenser_id = :dispenser AND stream_no = :stream ORDER BY opened_seq""")
    rows = connection.execute(query, {"dispenser": dispenser_id, "stream": stream_no})
    return [(row.opened_seq, row.session, row.closed_seq) for row in rows]


ROWS: Final = {
    "fact without kind or reason": """
        SELECT dispenser_id || '/' || stream_no || '/' || seq FROM facts WHERE (kind IS NULL) <> (quarantine_reason IS NOT NULL)""",
    "forked fact and its digest": """
        SELECT dispenser_id || '/' || stream_no || '/' || seq FROM forked_facts WHERE line_digest <> sha256(line)""",
    # What an operation is asked for stands beside what it was sent as.
    "operation and its payload": """
        SELECT operation_id FROM operations AS o, jsonb_each_text(payload) AS sent
        WHERE CASE sent.key WHEN 'dispenser_id' THEN o.dispenser_id WHEN 'visit_id' THEN o.visit_id WHEN 'slot' THEN o.slot::text
                            WHEN 'kind' THEN o.kind WHEN 'session' THEN o.session WHEN 'step' THEN o.step::text
                            WHEN 'actor' THEN o.actor WHEN 'van' THEN o.van ELSE sent.value END IS DISTINCT FROM sent.value""",
    "movement and its reason": r"""
        SELECT place || ' ' || id FROM movements
        WHERE reason LIKE 'vend\_%' AND NOT (source LIKE 'slot/%' AND target = substr(reason, 6) || '/' || place)
           OR source LIKE 'slot/%' AND split_part(target, '/', 1) IN ('dispensed', 'test')
              AND reason NOT IN ('vend_dispensed', 'vend_test', 'rebooked', 'corrected')""",
}
"""Rows that contradict themselves, by what is looked at."""


def wrong_rows(connection: Connection, query: str) -> list[str]:
    """Name the rows that one of ROWS finds."""
    return list(connection.execute(text(query)).scalars())


def streams(connection: Connection) -> Iterator[Stream]:
    """Yield every stream's cursor with the holes that are known."""
    holes: dict[tuple[str, int], dict[int, tuple[int, bytes]]] = defaultdict(dict)
    for row in connection.execute(text("SELECT dispenser_id, stream_no, first_seq, last_seq, digest FROM stream_gaps")):
        holes[row.dispenser_id, row.stream_no][row.first_seq] = (row.last_seq, bytes(row.digest))
    query = text("SELECT dispenser_id, stream_no, stream_id, through_seq, digest FROM streams ORDER BY 1, 2")
    for row in connection.execute(query).all():
        key = (row.dispenser_id, row.stream_no)
        yield Stream(*key, row.stream_id, row.through_seq, bytes(row.digest), holes.get(key, {}))


def lines(connection: Connection, dispenser_id: str, stream_no: int) -> Iterator[tuple[int, bytes, str | None]]:
    """Yield a stream's stored facts in the order of their numbers, with their kind, a piece at a time."""
    query = text(
        "SELECT seq, line, kind FROM facts WHERE dispenser_id = :dispenser AND stream_no = :stream ORDER BY seq"
    )
    rows = connection.execute(query, {"dispenser": dispenser_id, "stream": stream_no}, execution_options=PIECEWISE)
    for row in rows:
        yield row.seq, bytes(row.line), row.kind


def count(connection: Connection, table: str) -> int:
    """Count the rows of a table of ours."""
    return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())  # noqa: S608 - a constant
