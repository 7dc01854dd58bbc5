"""The table of faults, opened and cleared; never two open rows of one cause."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import BigInteger, Column, Identity, Index, Integer, Table, Text, select, text, update

from fleet_server.bulk import unnest_insert
from fleet_server.database import Connection, metadata
from fleet_server.devices.store import MOMENT

NO_SLOT = 0
"""The slot of a fault that concerns the whole machine."""
ALL_OF_THE_MACHINE = "*"
"""The code with which everything ends that a machine itself had told: its new card knows nothing of it."""

faults = Table(
    "faults",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("dispenser_id", Text, nullable=False),
    Column("slot", Integer, nullable=False),
    Column("code", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("opened_at", MOMENT, nullable=False),
    Column("cleared_at", MOMENT),
)
Index(
    "uq_faults_open",
    faults.c.dispenser_id,
    faults.c.slot,
    faults.c.code,
    unique=True,
    postgresql_where=faults.c.cleared_at.is_(None),
)


@dataclass(frozen=True, slots=True)
class FaultChange:
    """A fault begins (`opened`) or ends. `source` tells whether the machine or the server saw it."""

    dispenser_id: str
    code: str
    opened: bool
    at: datetime
    slot: int = NO_SLOT
    detail: str = ""
    source: Literal["machine", "server"] = "server"


def record(connection: Connection, changes: Sequence[FaultChange]) -> None:
    """Open and clear faults in the order given; what is open already, or cleared already, stays as it is."""
    first = 0
    for place, change in enumerate(changes):
        if change.code == ALL_OF_THE_MACHINE:
            _record(connection, changes[first:place])
            of_machine = (faults.c.dispenser_id == change.dispenser_id) & (faults.c.source == "machine")
            connection.execute(
                update(faults).where(of_machine & faults.c.cleared_at.is_(None)).values(cleared_at=change.at)
            )
            first = place + 1
    _record(connection, changes[first:])


def _record(connection: Connection, changes: Sequence[FaultChange]) -> None:
    for opened, cleared in _turns(changes):
        columns = {
            "dispenser_id": "text", "slot": "int4", "code": "text", "source": "text", "detail": "text",
            "opened_at": "timestamptz",
        }  # fmt: skip
        rows = [(c.dispenser_id, c.slot, c.code, c.source, c.detail, c.at) for c in opened]
        unnest_insert(connection, "faults", columns, rows, on_conflict="ON CONFLICT DO NOTHING")
        _clear(connection, cleared)


def _clear(connection: Connection, changes: Sequence[FaultChange]) -> None:
    if not changes:
        return
    statement = """
        UPDATE faults SET cleared_at = c.at
        FROM unnest(%b::text[], %b::int[], %b::text[], %b::timestamptz[]) AS c(id, slot, code, at)
        WHERE faults.dispenser_id = c.id AND faults.slot = c.slot AND faults.code = c.code AND cleared_at IS NULL"""
    rows = [(c.dispenser_id, c.slot, c.code, c.at) for c in changes]
    connection.exec_driver_sql(statement, tuple(list(column) for column in zip(*rows, strict=True)))


def _turns(changes: Sequence[FaultChange]) -> list[tuple[list[FaultChange], list[FaultChange]]]:
    """Cut changes into turns, (opened, cleared): in each a fault changes once, and over all of them in the order given."""
    turns: list[tuple[list[FaultChange], list[FaultChange]]] = []
    last: dict[tuple[str, int, str], tuple[int, bool]] = {}
    for change in changes:
        key = (change.dispenser_id, change.slot, change.code)
        turn, was_opened = last.get(key, (-1, not change.opened))
        if was_opened == change.opened:  # it is so already
            continue
        last[key] = turn + 1, change.opened
        if turn + 1 == len(turns):
            turns.append(([], []))
        turns[turn + 1][not change.opened].append(change)
    return turns


@dataclass(frozen=True, slots=True)
class OpenFault:
    """A fault that has begun and not ended."""

    dispenser_id: str
    slot: int
    code: str
    source: str
    detail: str
    opened_at: datetime


@dataclass(frozen=True, slots=True)
class PastFault(OpenFault):
    """A fault, whether it has ended or not."""

    id: int
    cleared_at: datetime | None


def list_faults(
    connection: Connection, *, code: str | None = None, dispenser_id: str | None = None, before: int | None, limit: int
) -> list[PastFault]:
    """Return faults, newest first: the open ones and those that have ended."""
    query = select(*(faults.c[name] for name in PastFault.__dataclass_fields__)).order_by(faults.c.id.desc())
    for column, value in ((faults.c.code, code), (faults.c.dispenser_id, dispenser_id)):
        if value is not None:
            query = query.where(column == value)
    if before is not None:
        query = query.where(faults.c.id < before)
    return [PastFault(**row) for row in connection.execute(query.limit(limit)).mappings()]


def open_faults(connection: Connection, dispenser_ids: Sequence[str] | None = None) -> list[OpenFault]:
    """Return open faults, oldest first."""
    query = select(*(faults.c[name] for name in OpenFault.__dataclass_fields__)).where(faults.c.cleared_at.is_(None))
    if dispenser_ids is not None:
        query = query.where(faults.c.dispenser_id.in_(dispenser_ids))
    return [OpenFault(**row) for row in connection.execute(query.order_by(faults.c.opened_at, faults.c.id)).mappings()]


def count_open(connection: Connection) -> dict[str, int]:
    """Return how many faults of each code are open."""
    query = text("SELECT code, count(*) AS faults FROM faults WHERE cleared_at IS NULL GROUP BY code ORDER BY code")
    return {row.code: row.faults for row in connection.execute(query)}
