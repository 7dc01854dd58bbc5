"""The table of faults, opened and cleared; never two open rows of one cause."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import BigInteger, Column, Identity, Index, Integer, Table, Text, select, text

from fleet_server.database import Connection, metadata, unnest_insert
from fleet_server.devices.store import MOMENT

NO_SLOT = 0
"""The slot of a fault that concerns the whole machine."""

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
    for opened, run in _runs(changes):
        rows = [(c.dispenser_id, c.slot, c.code, c.source, c.detail, c.at) for c in run]
        if opened:
            columns = {
                "dispenser_id": "text", "slot": "int", "code": "text", "source": "text", "detail": "text",
                "opened_at": "timestamptz",
            }  # fmt: skip
            unnest_insert(connection, "faults", columns, rows, on_conflict="ON CONFLICT DO NOTHING")
        else:
            connection.execute(
                text("""
                UPDATE faults SET cleared_at = c.at
                FROM unnest(CAST(:ids AS text[]), CAST(:slots AS int[]), CAST(:codes AS text[]), CAST(:ats AS timestamptz[])) AS c(id, slot, code, at)
                WHERE faults.dispenser_id = c.id AND faults.slot = c.slot AND faults.code = c.code AND cleared_at IS NULL
                """),
                {
                    "ids": [r[0] for r in rows],
                    "slots": [r[1] for r in rows],
                    "codes": [r[2] for r in rows],
                    "ats": [r[5] for r in rows],
                },
            )


def _runs(changes: Sequence[FaultChange]) -> list[tuple[bool, list[FaultChange]]]:
    runs: list[tuple[bool, list[FaultChange]]] = []
    for change in changes:
        if not runs or runs[-1][0] != change.opened:
            runs.append((change.opened, []))
        runs[-1][1].append(change)
    return runs


@dataclass(frozen=True, slots=True)
class OpenFault:
    """A fault that has begun and not ended."""

    dispenser_id: str
    slot: int
    code: str
    source: str
    detail: str
    opened_at: datetime


def open_faults(connection: Connection, dispenser_ids: Sequence[str] | None = None) -> list[OpenFault]:
    """Return open faults, oldest first."""
    query = select(*(faults.c[name] for name in OpenFault.__dataclass_fields__)).where(faults.c.cleared_at.is_(None))
    if dispenser_ids is not None:
        query = query.where(faults.c.dispenser_id.in_(dispenser_ids))
    return [OpenFault(**row) for row in connection.execute(query.order_by(faults.c.opened_at, faults.c.id)).mappings()]
