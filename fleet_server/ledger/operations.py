"""What phones enter: kept whole, bound to a door session of the machine, booked there; in any order, as often as sent."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from fleet_server.database import Connection
from fleet_server.devices.store import lock
from fleet_server.faults.store import record
from fleet_server.ledger import store
from fleet_server.ledger.booking import SlotKey, book_entries
from fleet_server.ledger.entries import anchored_operation
from fleet_server.ledger.fold import Anchored
from fleet_server.ledger.movements import DoorOpening, DoorSession, Verdict
from fleet_server.ledger.telling import tell_books

WITHOUT_CODE_WITHIN = timedelta(hours=12)
"""An operation without a session code binds to the one door session this near to its entry."""


@dataclass(frozen=True, slots=True)
class SlotOperation:
    """A count, refill or removal at one slot. `step` is its place within the visit, `van` the account it draws on."""

    operation_id: str
    dispenser_id: str
    visit_id: str | None
    slot: int
    kind: Literal["count", "refill", "remove"]
    session: str | None
    step: int
    entered_at: datetime
    actor: str
    van: str
    product: str | None = None
    lot: str | None = None
    packs: int | None = None
    counted: int | None = None
    reason: str | None = None

    def payload(self) -> dict[str, Any]:
        """Return what makes it this operation: the same id with another payload is conflicting."""
        fields = asdict(self)
        del fields["operation_id"], fields["entered_at"]
        return fields


@dataclass(frozen=True, slots=True)
class Booking:
    """What became of one operation."""

    operation_id: str
    verdict: Verdict
    detail: str = ""


def book(connection: Connection, operations: Sequence[SlotOperation], now: datetime) -> list[Booking]:
    """Keep operations and book those whose door session is known; the others wait for it."""
    lock(connection, {operation.dispenser_id for operation in operations})
    entries: dict[SlotKey, list[Anchored]] = defaultdict(list)
    bookings = [_keep(connection, operation, now, entries) for operation in operations]
    record(connection, book_entries(connection, entries, now))
    tell_books(connection, sorted({dispenser_id for dispenser_id, _ in entries}), now)
    return bookings


def _keep(
    connection: Connection, operation: SlotOperation, now: datetime, entries: dict[SlotKey, list[Anchored]]
) -> Booking:
    stored = store.read_operation(connection, operation.operation_id)
    if stored is not None:
        same = stored["payload"] == operation.payload()
        return Booking(operation.operation_id, Verdict.REPEATED if same else Verdict.CONFLICTING, stored["state"])
    row = _row(operation, now)
    session = _session_of(connection, operation)
    if session is None:
        store.write_operation(connection, row)
        return Booking(operation.operation_id, Verdict.WAITING, "no door session of the machine is known for it yet")
    bound = row | {"state": "booked", "stream_no": session.stream_no, "seq": session.opened_seq}
    store.write_operation(connection, bound)
    key = (operation.dispenser_id, operation.slot)
    entries[key].append(anchored_operation(bound, session.stream_no, session.opened_seq))
    return Booking(operation.operation_id, Verdict.BOOKED)


def _row(operation: SlotOperation, now: datetime) -> dict[str, Any]:
    names = [
        "operation_id",
        "dispenser_id",
        "visit_id",
        "slot",
        "kind",
        "session",
        "step",
        "entered_at",
        "actor",
        "van",
    ]
    row = {name: getattr(operation, name) for name in names}
    return row | {"payload": operation.payload(), "received_at": now, "state": "waiting"}


def _session_of(connection: Connection, operation: SlotOperation) -> DoorSession | None:
    if operation.session is not None:
        found = store.door_sessions_of(connection, operation.dispenser_id, session=operation.session, limit=1)
        return found[0] if found else None
    near = [
        session
        for session in store.door_sessions_of(connection, operation.dispenser_id)
        if abs(session.opened_at - operation.entered_at) <= WITHOUT_CODE_WITHIN
    ]
    return near[0] if len(near) == 1 else None


def bind_waiting(connection: Connection, doors: Sequence[DoorOpening]) -> Mapping[SlotKey, list[Anchored]]:
    """Bind the operations that waited for door sessions which have now arrived; returns their entries, to be booked."""
    first: dict[tuple[str, str], DoorOpening] = {}
    for door in doors:
        first.setdefault((door.dispenser_id, door.session), door)
    entries: dict[SlotKey, list[Anchored]] = defaultdict(list)
    bound: list[tuple[str, int, int]] = []
    for row in store.waiting_operations(connection, first) if first else []:
        door = first[row["dispenser_id"], row["session"]]
        bound.append((row["operation_id"], door.stream_no, door.seq))
        entry = anchored_operation(row, door.stream_no, door.seq, door.received_at)
        entries[door.dispenser_id, row["slot"]].append(entry)
    store.bind_operations(connection, bound)
    return entries
