"""What other features may ask of the ledger."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from fleet_server.clock import LOCAL
from fleet_server.database import Connection
from fleet_server.devices.store import recent_cursors
from fleet_server.ledger import lot_store, store
from fleet_server.ledger.movements import DoorSession, Movement


@dataclass(frozen=True, slots=True)
class QueuedLot:
    """Adjacent packs of one lot in a coil; no expiry where the lot is unknown."""

    product: str
    lot: str
    packs: int
    expires_on: date | None
    blocked: str | None = None


@dataclass(frozen=True, slots=True)
class SlotStock:
    """The book of one slot: its queue, first out first; `units` is less than the queue by what is owed."""

    queue: list[QueuedLot]
    units: int
    owed: int


@dataclass(frozen=True, slots=True)
class DoorState:
    """Whether the door is open, as far as the machine has told, and in which session."""

    open: bool
    session: str | None
    opened_at: datetime | None


@dataclass(frozen=True, slots=True)
class Balance:
    """Units of one lot on one account."""

    account: str
    product: str
    lot: str
    units: int


def slot_stock(connection: Connection, dispenser_ids: Sequence[str] | None = None) -> dict[tuple[str, int], SlotStock]:
    """Return the books of slots that ever had an entry, by (dispenser_id, slot)."""
    lots = {
        (product, lot): (expires_on, blocked) for product, lot, expires_on, blocked in lot_store.read_lots(connection)
    }
    stock = {}
    for key, (book, _) in store.read_books(connection, dispenser_ids=dispenser_ids).items():
        queue = [QueuedLot(*run, *lots.get((run.product, run.lot), (None, None))) for run in book.queue]
        stock[key] = SlotStock(queue, book.units, sum(run.packs for run in book.owed))
    return stock


def balances(connection: Connection, account_prefix: str | None = None, limit: int = 10_000) -> list[Balance]:
    """Return balances that are not zero, by account."""
    return [Balance(*row) for row in store.read_balances(connection, account_prefix, limit)]


def movements(connection: Connection, account: str | None = None, limit: int = 100) -> list[Movement]:
    """Return the newest movements, of one account or of all."""
    return store.recent_movements(connection, account, limit)


def dispensed_per_slot(
    connection: Connection, since: datetime, until: datetime
) -> list[tuple[str, int, str, date, int]]:
    """Return packs delivered per slot and local day: (dispenser_id, slot, product, local_day, units)."""
    return store.dispensed_per_slot(connection, since, until, str(LOCAL))


def door_state(connection: Connection, dispenser_id: str) -> DoorState:
    """Tell whether the machine's newest door session has ended; of one that went with a lost card nobody tells the end."""
    newest = next(iter(store.door_sessions_of(connection, dispenser_id, limit=1)), None)
    if newest is None:
        return DoorState(open=False, session=None, opened_at=None)
    lost = any(stream.stream_no > newest.stream_no for stream in recent_cursors(connection, [dispenser_id], 1))
    if newest.closed_seq is not None or lost:
        return DoorState(open=False, session=newest.session, opened_at=None)
    return DoorState(open=True, session=newest.session, opened_at=newest.opened_at)


def sessions_of(connection: Connection, dispenser_id: str, limit: int = 20) -> list[DoorSession]:
    """Return one machine's door sessions, newest first."""
    return store.door_sessions_of(connection, dispenser_id, limit=limit)


@dataclass(frozen=True, slots=True)
class VisitEntry:
    """What was entered at one slot in a visit; `difference` is what a booked count changed."""

    operation_id: str
    slot: int
    kind: str
    state: str
    session: str | None
    counted: int | None
    lot: str | None
    packs: int | None
    difference: int | None


def entries_of_visit(connection: Connection, visit_id: str) -> list[VisitEntry]:
    """Return what was entered in one visit, in its order."""
    rows = store.operations_of_visit(connection, visit_id)
    if not rows:
        return []
    counts = [row["operation_id"] for row in rows if row["kind"] == "count" and row["state"] == "booked"]
    changed = store.differences_of(connection, rows[0]["dispenser_id"], counts)
    return [
        VisitEntry(
            row["operation_id"],
            row["slot"],
            row["kind"],
            row["state"],
            row["session"],
            row["payload"]["counted"],
            row["payload"]["lot"],
            row["payload"]["packs"],
            changed.get(row["operation_id"], 0) if row["operation_id"] in counts else None,
        )
        for row in rows
    ]


def operations_of_visit(connection: Connection, visit_id: str) -> list[Any]:
    """Return the operations of one visit whole, in their order."""
    return store.operations_of_visit(connection, visit_id)


def operation(connection: Connection, operation_id: str) -> Any:
    """Return one operation whole, or None."""
    return store.read_operation(connection, operation_id)
