"""What a rebuild reads and writes: whole projections, past the statements that move them one entry at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import delete, insert, select, text

from fleet_server.database import Connection
from fleet_server.devices.store import facts
from fleet_server.ledger.movements import DoorSession, Movement
from fleet_server.ledger.store import door_sessions, movements, operations

Key = tuple[str, str, str]
"""(account, product, lot)."""


def lines_of_stream(
    connection: Connection, dispenser_id: str, stream_no: int
) -> Iterator[tuple[int, bytes, str | None, datetime]]:
    """Yield a stream's facts in their order: (seq, line, kind, corrected_at)."""
    query = (
        select(facts.c.seq, facts.c.line, facts.c.kind, facts.c.corrected_at)
        .where(facts.c.dispenser_id == dispenser_id, facts.c.stream_no == stream_no)
        .order_by(facts.c.seq)
    )
    for row in connection.execute(query.execution_options(yield_per=1_000)):
        yield row.seq, bytes(row.line), row.kind, row.corrected_at


def move_cursor(connection: Connection, values: dict[str, Any]) -> None:
    """Put a stream's cursor where its facts say that it stands."""
    query = text("""
        UPDATE streams SET through_seq = :through_seq, digest = :digest, last_at = :last_at,
               last_boot_id = :last_boot_id, last_mono_ms = :last_mono_ms
        WHERE dispenser_id = :dispenser_id AND stream_no = :stream_no""")
    connection.execute(query, values)


def streams_without_cursor(connection: Connection, dispenser_id: str) -> list[int]:
    """Return streams that have facts and no cursor: the id of such a stream stands nowhere else."""
    query = text("""
        SELECT DISTINCT stream_no FROM facts f WHERE dispenser_id = :dispenser_id AND NOT EXISTS (
            SELECT 1 FROM streams s WHERE s.dispenser_id = f.dispenser_id AND s.stream_no = f.stream_no) ORDER BY 1""")
    return list(connection.execute(query, {"dispenser_id": dispenser_id}).scalars())


def read_doors(connection: Connection, dispenser_id: str) -> list[DoorSession]:
    """Return all door sessions of a machine, oldest first."""
    query = select(door_sessions).where(door_sessions.c.dispenser_id == dispenser_id)
    query = query.order_by(door_sessions.c.stream_no, door_sessions.c.opened_seq)
    return [DoorSession(**row) for row in connection.execute(query).mappings()]


def replace_doors(connection: Connection, dispenser_id: str, doors: Sequence[DoorSession]) -> None:
    """Write all door sessions of a machine anew."""
    connection.execute(delete(door_sessions).where(door_sessions.c.dispenser_id == dispenser_id))
    if doors:
        connection.execute(insert(door_sessions), [asdict(door) for door in doors])


def slot_operations(connection: Connection, dispenser_id: str) -> list[Any]:
    """Return everything that was entered at a machine's slots, bound or waiting."""
    query = select(operations).where(operations.c.dispenser_id == dispenser_id, operations.c.slot.is_not(None))
    return list(connection.execute(query.order_by(operations.c.step, operations.c.operation_id)).mappings())


def drop_book(connection: Connection, dispenser_id: str, slot: int) -> None:
    """Drop the book of a slot that nothing was ever entered for."""
    query = text("DELETE FROM slot_books WHERE dispenser_id = :dispenser_id AND slot = :slot")
    connection.execute(query, {"dispenser_id": dispenser_id, "slot": slot})


def depot_operations(connection: Connection) -> list[Any]:
    """Return receipts, picks and returns."""
    query = select(operations).where(operations.c.kind.in_(["receipt", "pick", "return"]))
    return list(connection.execute(query.order_by(operations.c.operation_id)).mappings())


def movements_of_cause(connection: Connection, place: str, cause: str) -> list[Movement]:
    """Return what a cause outside slots has posted."""
    names = [name for name in Movement._fields if name not in {"slot", "anchor"}]
    query = select(*(movements.c[name] for name in names)).where(movements.c.place == place, movements.c.cause == cause)
    query = query.where(movements.c.id.startswith(f"{cause}#", autoescape=True))
    return [Movement(**row) for row in connection.execute(query).mappings()]


def hold_balances(connection: Connection) -> None:
    """Let nobody else move a balance until the transaction ends."""
    connection.execute(text("LOCK TABLE balances IN SHARE ROW EXCLUSIVE MODE"))


def differing_balances(connection: Connection) -> list[tuple[Key, int, int]]:
    """Return balances that are not the sum of their movements: (key, the sum, what stands there)."""
    query = text("""
        WITH moved AS (
            SELECT account, product, lot, sum(units) AS units FROM (
                SELECT target AS account, product, lot, units FROM movements
                UNION ALL SELECT source, product, lot, -units FROM movements) AS ends
            GROUP BY account, product, lot)
        SELECT account, product, lot, coalesce(m.units, 0) AS moved, coalesce(b.units, 0) AS stands
        FROM moved m FULL JOIN balances b USING (account, product, lot)
        WHERE coalesce(m.units, 0) <> coalesce(b.units, 0) ORDER BY 1, 2, 3""")
    return [((r.account, r.product, r.lot), int(r.moved), int(r.stands)) for r in connection.execute(query)]


def set_balances(connection: Connection, rows: Sequence[tuple[Key, int]]) -> None:
    """Put balances right."""
    query = text("""
        INSERT INTO balances (account, product, lot, units) VALUES (:account, :product, :lot, :units)
        ON CONFLICT (account, product, lot) DO UPDATE SET units = excluded.units""")
    if rows:
        values = [{"account": key[0], "product": key[1], "lot": key[2], "units": units} for key, units in rows]
        connection.execute(query, values)
