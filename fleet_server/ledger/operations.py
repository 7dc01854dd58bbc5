"""What phones enter: kept whole, bound to a door session of the machine, booked there; in any order, as often as sent."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from fleet_server.database import Connection
from fleet_server.devices.store import lock
from fleet_server.faults.store import record
from fleet_server.ledger import binding_store, store
from fleet_server.ledger.booking import SlotKey, book_entries
from fleet_server.ledger.entries import anchored_operation
from fleet_server.ledger.fold import Anchored
from fleet_server.ledger.movements import DoorOpening, DoorSession, Verdict
from fleet_server.ledger.telling import tell_books

WITHOUT_CODE_WITHIN = timedelta(hours=12)
"""An operation without a session code binds to the one door session this near to its entry."""

CODE_WITHIN = timedelta(days=7)
"""A code of six digits comes again in the life of a machine: it names a session of about the time of the entry, or none yet."""
NO_DOOR = "no door session of the machine is known for it yet"


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
    ids = [operation.operation_id for operation in operations]
    kept: dict[str, Any] = {row["operation_id"]: row for row in store.read_operations(connection, ids)}
    doors = store.newest_doors(connection, {(o.dispenser_id, o.session) for o in operations if o.session is not None})
    entries: dict[SlotKey, list[Anchored]] = defaultdict(list)
    rows: list[dict[str, Any]] = []
    bookings: list[Booking] = []
    for operation in operations:
        stored = kept.get(operation.operation_id)
        if stored is not None:
            verdict = Verdict.REPEATED if stored["payload"] == operation.payload() else Verdict.CONFLICTING
            bookings.append(Booking(operation.operation_id, verdict, stored["state"]))
            continue
        row = _row(operation, now)
        door = _door_near(connection, operation) if operation.session is None else doors.get(_code(operation))
        if door is not None and operation.session is not None and not _is_near(door.opened_at, operation.entered_at):
            door = None
        if door is not None:
            row |= {"state": "booked", "stream_no": door.stream_no, "seq": door.opened_seq}
            entry = anchored_operation(row, door.stream_no, door.opened_seq)
            entries[operation.dispenser_id, operation.slot].append(entry)
        kept[operation.operation_id] = row
        rows.append(row)
        bookings.append(
            Booking(operation.operation_id, Verdict.WAITING, NO_DOOR)
            if door is None
            else Booking(operation.operation_id, Verdict.BOOKED)
        )
    store.write_operations(connection, rows)
    record(connection, book_entries(connection, entries, now))
    tell_books(connection, sorted({dispenser_id for dispenser_id, _ in entries}), now)
    return bookings


def doors_meant(session: str | None, entered_at: datetime, doors: Iterable[DoorSession]) -> list[DoorSession]:
    """Return those of a machine's door sessions that an entry can mean: by its code and its time, or by its time alone."""
    if session is None:
        return [door for door in doors if abs(door.opened_at - entered_at) <= WITHOUT_CODE_WITHIN]
    return [door for door in doors if door.session == session and _is_near(door.opened_at, entered_at)]


def _is_near(opened_at: datetime, entered_at: datetime) -> bool:
    return abs(opened_at - entered_at) <= CODE_WITHIN


def _code(operation: SlotOperation) -> tuple[str, str]:
    return operation.dispenser_id, operation.session or ""


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


def _door_near(connection: Connection, operation: SlotOperation) -> DoorSession | None:
    """Return the one door session that an entry without its code can mean, if there is one only."""
    near = doors_meant(None, operation.entered_at, store.door_sessions_of(connection, operation.dispenser_id))
    return near[0] if len(near) == 1 else None


def bind_waiting(connection: Connection, doors: Sequence[DoorOpening]) -> Mapping[SlotKey, list[Anchored]]:
    """Bind the operations that waited for door sessions which have now arrived; returns their entries, to be booked."""
    arrived: dict[tuple[str, str], list[DoorOpening]] = defaultdict(list)
    for opening in doors:
        arrived[opening.dispenser_id, opening.session].append(opening)
    entries: dict[SlotKey, list[Anchored]] = defaultdict(list)
    bound: list[tuple[str, int, int]] = []
    for row in binding_store.waiting_operations(connection, arrived) if arrived else []:
        door = (
            _first_near(connection, row, [d for d in doors if d.dispenser_id == row["dispenser_id"]])
            if row["session"] is None
            else next((d for d in arrived[_code_of(row)] if _is_near(d.at, row["entered_at"])), None)
        )
        if door is None:
            continue
        bound.append((row["operation_id"], door.stream_no, door.seq))
        entry = anchored_operation(row, door.stream_no, door.seq, door.received_at)
        entries[door.dispenser_id, row["slot"]].append(entry)
    binding_store.bind_operations(connection, bound)
    return entries


def _code_of(row: Any) -> tuple[str, str]:
    return row["dispenser_id"], row["session"]


def _first_near(connection: Connection, row: Any, arrived: Sequence[DoorOpening]) -> DoorOpening | None:
    """Return the first of these doors that an entry without its code can mean, where no other that is known lies near it."""
    near = [door for door in arrived if abs(door.at - row["entered_at"]) <= WITHOUT_CODE_WITHIN]
    if not near:
        return None
    these = {(door.stream_no, door.seq) for door in arrived}
    known = store.door_sessions_of(connection, row["dispenser_id"])
    others = [door for door in known if (door.stream_no, door.opened_seq) not in these]
    return None if doors_meant(None, row["entered_at"], others) else near[0]


def book_lost_doors(connection: Connection, before: datetime, now: datetime) -> int:
    """Book what was entered in door sessions that went with a lost card, behind what is known of its stream until then; returns how much.

    Only where we have heard of the next stream since `before`: until then the session may be on its way. Several visits that one
    card took with it keep the order of their entries, whatever order they came in.
    """
    lock(connection, {row["dispenser_id"] for row in binding_store.operations_of_lost_doors(connection, before)})
    entries: dict[SlotKey, list[Anchored]] = defaultdict(list)
    bound: list[tuple[str, int, int]] = []
    for row in binding_store.operations_of_lost_doors(connection, before):
        # Behind the end of a stream are numbers that no fact has: each visit gets its own.
        seq = row["at_seq"] + (0 if row["goes_on"] else 1 + int(row["entered_at"].timestamp()))
        bound.append((row["operation_id"], row["at_stream_no"], seq))
        entry = anchored_operation(row, row["at_stream_no"], seq)
        entries[row["dispenser_id"], row["slot"]].append(entry)
    binding_store.bind_operations(connection, bound)
    record(connection, book_entries(connection, entries, now))
    tell_books(connection, sorted({dispenser_id for dispenser_id, _ in entries}), now)
    return len(bound)
