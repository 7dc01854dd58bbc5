"""The slots of one machine, folded again from their beginning: books, faults that the books find, and movements."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fleet_server.database import Connection
from fleet_server.devices.store import facts_of_kinds
from fleet_server.faults.store import FaultChange, open_faults, record
from fleet_server.ledger import binding_store
from fleet_server.ledger import store as ledger
from fleet_server.ledger.booking import (
    BEFORE_ALL,
    BOOK_BELOW_ZERO,
    DROP_NOT_SEEN,
    LOT_CLAIM_DIFFERS,
    SLOT_EMPTY,
    STOCK_CLAIM_DIFFERS,
    SlotKey,
    corrections,
    entry_order,
    findings_of,
)
from fleet_server.ledger.entries import STOCK_KINDS, anchored_fact, anchored_operation
from fleet_server.ledger.fold import Anchored, Posting, SlotBook
from fleet_server.ledger.movements import DoorSession, Movement
from fleet_server.ledger.operations import doors_meant
from fleet_server.recovery import rebuild_store as store
from protocol.codec import decode_fact

Row = tuple[str, str, str, bool]
"""(table, place, words, repaired)."""

Found = dict[tuple[int, str], FaultChange | None]
"""By (slot, code): the last change, None where nobody can say."""
LONG_AGO = datetime.min.replace(tzinfo=UTC)
CLAIMS = (LOT_CLAIM_DIFFERS, STOCK_CLAIM_DIFFERS)
FOUND_BY_BOOKS = (BOOK_BELOW_ZERO, SLOT_EMPTY, DROP_NOT_SEEN, *CLAIMS)


def rebuild_slots(
    connection: Connection, dispenser_id: str, doors: Sequence[DoorSession], now: datetime, *, correct: bool
) -> Iterator[Row]:
    """Fold every slot of a machine again; the caller holds its lock."""
    entered = store.slot_operations(connection, dispenser_id)
    yield from _bind(connection, entered, doors, correct=correct)
    entries = _entries(
        connection, dispenser_id, store.slot_operations(connection, dispenser_id) if correct else entered
    )
    books = ledger.read_books(connection, dispenser_ids=[dispenser_id])
    faults: Found = {}
    for key in sorted(entries.keys() | books.keys()):
        yield from _slot(connection, key, entries.get(key, []), books.get(key), faults, now, correct=correct)
    yield from _faults(connection, dispenser_id, faults, now)


def _bind(
    connection: Connection, entered: Sequence[Any], doors: Sequence[DoorSession], *, correct: bool
) -> Iterator[Row]:
    for row in entered:
        meant = doors_meant(row["session"], row["entered_at"], doors) if row["state"] == "waiting" else []
        if not meant or (row["session"] is None and len(meant) > 1):
            continue
        door = meant[-1]
        if correct:
            binding_store.bind_operations(connection, [(row["operation_id"], door.stream_no, door.opened_seq)])
        words = f"{row['operation_id']} waited for door session {door.session}, which is known"
        yield "operations", f"{row['dispenser_id']}/{row['slot']}", words, correct


def _entries(connection: Connection, dispenser_id: str, entered: Sequence[Any]) -> dict[SlotKey, list[Anchored]]:
    found: dict[SlotKey, list[Anchored]] = defaultdict(list)
    for fact in facts_of_kinds(connection, dispenser_id, [*STOCK_KINDS, "stock_level"]):
        place = (dispenser_id, fact.stream_no, fact.seq)
        anchored = anchored_fact(*place, decode_fact(fact.line), fact.corrected_at, fact.received_at)
        for key, entry in anchored:
            found[key].append(entry)
    for row in entered:
        if row["state"] == "booked":
            key = (dispenser_id, row["slot"])
            found[key].append(anchored_operation(row, row["stream_no"], row["seq"], row["received_at"]))
    return {key: sorted(entries, key=entry_order) for key, entries in found.items()}


def _slot(
    connection: Connection,
    key: SlotKey,
    entries: Sequence[Anchored],
    stands: tuple[SlotBook, Any] | None,
    faults: Found,
    now: datetime,
    *,
    correct: bool,
) -> Iterator[Row]:
    place = f"{key[0]}/{key[1]}"
    book, last = SlotBook(*key), BEFORE_ALL
    wanted: dict[str, tuple[Anchored, Counter[Posting]]] = {}
    heard_at = LONG_AGO
    for entry in entries:
        postings = book.apply(entry.entry)
        _, owed = wanted.setdefault(entry.cause, (entry, Counter()))
        for posting in postings:
            owed[posting._replace(units=1)] += posting.units
        heard_at = max(heard_at, entry.received_at)
        for change in findings_of(book, entry, postings):
            # A claim was compared with what was known then. Where more has come since, nobody can say how: the next one tells.
            is_late = change.code in CLAIMS and heard_at > entry.received_at
            faults[change.slot, change.code] = None if is_late else change
        last = entry.anchor
    posted = ledger.movements_of_slot(connection, *key)
    implied = [*corrections(book, wanted, posted, now), *_reversals(wanted, posted, now)]
    if implied:
        if correct:
            ledger.write_movements(connection, implied)
        yield "movements", place, f"facts and operations imply {len(implied)} more", correct
    if not entries:
        store.drop_book(connection, *key)
        yield "slot_books", place, "nothing was ever entered for it", True
    elif stands is None or (stands[0].to_json(), stands[1]) != (book.to_json(), last):
        ledger.write_books(connection, [(book, last)])
        yield "slot_books", place, f"{book.units} packs, {stands[0].units if stands else 'no book'} before", True


def _reversals(wanted: Mapping[str, Any], posted: Sequence[Movement], now: datetime) -> list[Movement]:
    """Reverse what was posted for causes that are none: no fact and no operation accounts for it."""
    numbers: Counter[str] = Counter()
    net: Counter[tuple[str, str, str, str, str]] = Counter()
    pattern: dict[str, Movement] = {}
    for m in posted:
        numbers[m.cause] = max(numbers[m.cause], m.number + 1)
        if m.cause not in wanted:
            ends = (m.target, m.source) if m.reason == "rebooked" else (m.source, m.target)
            net[m.cause, *ends, m.product, m.lot] += -m.units if m.reason == "rebooked" else m.units
            pattern[m.cause] = m
    found = []
    for (cause, source, target, product, lot), units in sorted(net.items()):
        if units > 0:
            values: dict[str, Any] = {
                "source": target,
                "target": source,
                "product": product,
                "lot": lot,
                "units": units,
            }
            identity: dict[str, Any] = {"id": f"{cause}#{numbers[cause]}", "reason": "rebooked", "booked_at": now}
            found.append(pattern[cause]._replace(**values, **identity))
            numbers[cause] += 1
    return found


def _faults(connection: Connection, dispenser_id: str, derived: Found, now: datetime) -> Iterator[Row]:
    due = {key: change for key, change in derived.items() if change and change.opened and change.code in FOUND_BY_BOOKS}
    unsure = {key for key, change in derived.items() if change is None}
    stand = {
        (fault.slot, fault.code): fault
        for fault in open_faults(connection, [dispenser_id])
        if fault.code in FOUND_BY_BOOKS and fault.source == "server"
    }
    changes = [due[key] for key in sorted(due.keys() - stand.keys())]
    changes += [
        FaultChange(dispenser_id, code, opened=False, at=now, slot=slot)
        for slot, code in sorted(stand.keys() - due.keys() - unsure)
    ]
    record(connection, changes)
    for change in changes:
        words = f"{change.code} is now {'open' if change.opened else 'cleared'}"
        yield "faults", f"{dispenser_id}/{change.slot}", words, True
