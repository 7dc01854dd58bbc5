"""Operations that wait for their door session, and the places at which they are booked."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, text

from fleet_server.database import Connection
from fleet_server.ledger.store import among, operations


def bind_operations(connection: Connection, rows: Sequence[tuple[str, int, int]]) -> None:
    """Note the places that operations were booked at: (operation_id, stream_no, seq)."""
    statement = """
        UPDATE operations SET state = 'booked', stream_no = b.stream_no, seq = b.seq
        FROM unnest(%b::text[], %b::int[], %b::bigint[]) AS b(id, stream_no, seq) WHERE operation_id = b.id"""
    if rows:
        connection.exec_driver_sql(statement, tuple(list(column) for column in zip(*rows, strict=True)))


def operations_of_lost_doors(connection: Connection, before: datetime) -> list[Any]:
    """Return waiting operations that were entered before a later stream of their machine began, which we heard of before a moment.

    Each with the stream whose door it was, `at_stream_no`, the last fact of that before the entry, `at_seq`, and whether the
    stream goes on behind it, `goes_on`.
    """
    query = text("""
        SELECT o.*, ended.stream_no AS at_stream_no, known.seq AS at_seq, known.seq < ended.through_seq AS goes_on
        FROM operations AS o
        CROSS JOIN LATERAL (
            SELECT s.stream_no, s.began_at FROM streams AS s
            JOIN facts AS f ON f.dispenser_id = s.dispenser_id AND f.stream_no = s.stream_no AND f.seq = 1
            WHERE s.dispenser_id = o.dispenser_id AND s.stream_no > 1 AND f.corrected_at > o.entered_at
            ORDER BY s.stream_no LIMIT 1) AS later
        JOIN streams AS ended ON ended.dispenser_id = o.dispenser_id AND ended.stream_no = later.stream_no - 1
        CROSS JOIN LATERAL (
            SELECT coalesce(max(f.seq), 0) AS seq FROM facts AS f
            WHERE f.dispenser_id = o.dispenser_id AND f.stream_no = ended.stream_no AND f.corrected_at <= o.entered_at) AS known
        WHERE o.state = 'waiting' AND o.slot IS NOT NULL AND later.began_at < :before
        ORDER BY o.dispenser_id, o.entered_at, o.step, o.operation_id""")
    return list(connection.execute(query, {"before": before}).mappings())


def waiting_operations(connection: Connection, sessions: Collection[tuple[str, str]]) -> list[Any]:
    """Return operations that wait for one of these (dispenser_id, session), or for any of the machine, in the order of their steps."""
    without_code = operations.c.session.is_(None) & (
        operations.c.dispenser_id == func.any([name for name, _ in sessions])
    )
    query = select(operations).where(
        among(operations, sessions) | without_code, operations.c.state == "waiting", operations.c.slot.is_not(None)
    )
    return list(connection.execute(query.order_by(operations.c.step, operations.c.operation_id)).mappings())
