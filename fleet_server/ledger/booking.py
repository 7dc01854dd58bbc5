"""Books entries of slots: in order one by one, and a late one by folding its slot again and posting the difference."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from fleet_server.database import Connection
from fleet_server.devices.store import facts_of_kinds
from fleet_server.faults.store import FaultChange
from fleet_server.ledger import store
from fleet_server.ledger.entries import STOCK_KINDS, anchored_fact, anchored_operation
from fleet_server.ledger.fold import Anchor, Anchored, Claimed, Counted, Posting, SlotBook, Taken
from fleet_server.ledger.movements import Movement
from protocol.codec import decode_fact

SlotKey = tuple[str, int]
Entries = Mapping[SlotKey, Sequence[Anchored]]

# Where a book stands before its first entry.
BEFORE_ALL = Anchor(0, 0, 0)

# What leaves a slot lot by lot. Cheap to say twice, so each book says it whenever it sees it.
LOT_CLAIM_DIFFERS = "LOT_CLAIM_DIFFERS"
STOCK_CLAIM_DIFFERS = "STOCK_CLAIM_DIFFERS"
BOOK_BELOW_ZERO = "BOOK_BELOW_ZERO"
COUNT_DUE = "COUNT_DUE"
SLOT_EMPTY = "SLOT_EMPTY"
DROP_NOT_SEEN = "DROP_NOT_SEEN"
REFOUND = (LOT_CLAIM_DIFFERS, BOOK_BELOW_ZERO, DROP_NOT_SEEN)
"""What a slot's whole history tells anew when a late entry has come."""


def book_entries(connection: Connection, entries: Entries, now: datetime) -> list[FaultChange]:
    """Book entries that are stored already (their facts, their operations); returns what the books found.

    The caller holds the lock of every machine concerned. An entry anchored before what its slot's book has already seen
    is late: the slot is folded again from its beginning, and only the difference to what was posted is posted. So any
    order of arrival gives the same balances.
    """
    books = store.read_books(connection, keys=entries) if entries else {}
    movements: list[Movement] = []
    findings: list[FaultChange] = []
    kept: list[tuple[SlotBook, Anchor]] = []
    for key, arrived in sorted(entries.items()):
        book, seen = books.get(key) or (SlotBook(*key), BEFORE_ALL)
        due = sorted(arrived, key=entry_order)
        if due[0].anchor > seen:
            movements += _fold(book, due, now, findings)
            kept.append((book, due[-1].anchor))
        else:
            book, last, corrected = refold(connection, key, now, findings)
            movements += corrected
            kept.append((book, max(last, seen)))
    store.write_movements(connection, movements, kept)
    return findings


def entry_order(entry: Anchored) -> tuple[Anchor, str]:
    """By anchor; what one person entered at one step, by its id, so that the order never depends on arrival."""
    return entry.anchor, entry.cause


def _fold(book: SlotBook, due: Iterable[Anchored], now: datetime, findings: list[FaultChange]) -> list[Movement]:
    movements: list[Movement] = []
    cause, number = "", 0
    for entry in due:
        if entry.cause != cause:
            cause, number = entry.cause, 0
        postings = book.apply(entry.entry)
        findings += findings_of(book, entry, postings)
        for posting in postings:
            movements.append(_movement(book, entry, posting, number, entry.received_at or now))
            number += 1
    return movements


def findings_of(book: SlotBook, anchored: Anchored, postings: Sequence[Posting]) -> list[FaultChange]:
    """Return what a book finds in an entry that has just been applied."""

    def change(code: str, detail: str = "", *, opened: bool) -> FaultChange:
        return FaultChange(book.dispenser_id, code, opened, anchored.at, book.slot, detail)

    changes: list[FaultChange] = []
    match anchored.entry:
        case Taken(into=into, claimed_lot=claimed):
            if not book.queue and not book.owed:  # that was the last one
                changes.append(change(SLOT_EMPTY, opened=True))
            if into == "unverified":
                changes.append(change(DROP_NOT_SEEN, opened=True))
            if claimed is not None and claimed != postings[0].lot:
                changes.append(change(LOT_CLAIM_DIFFERS, f"machine: {claimed}, book: {postings[0].lot}", opened=True))
            if book.owed and book.units == -1:  # it was not below zero before
                detail = "more came out than the book had: a count is due"
                changes.append(change(BOOK_BELOW_ZERO, detail, opened=True))
        case Counted():
            settled = (BOOK_BELOW_ZERO, COUNT_DUE, LOT_CLAIM_DIFFERS, DROP_NOT_SEEN)
            changes += [change(code, opened=False) for code in settled]
            changes.append(change(SLOT_EMPTY, opened=not book.queue))
        case Claimed() as claim if book.agrees(claim):
            changes.append(change(STOCK_CLAIM_DIFFERS, opened=False))
        case Claimed() as claim:
            detail = f"machine: {_words(claim.queue)}, book: {_words((run.lot, run.packs) for run in book.queue)}"
            changes.append(change(STOCK_CLAIM_DIFFERS, detail[:200], opened=True))
        case _:
            changes.append(change(SLOT_EMPTY, opened=not book.queue))
    return changes


def _words(runs: Iterable[tuple[str, int]]) -> str:
    return " + ".join(f"{packs} of {lot}" for lot, packs in runs) or "none"


def _movement(book: SlotBook, entry: Anchored, posting: Posting, number: int, now: datetime) -> Movement:
    return Movement(
        book.dispenser_id, f"{entry.cause}#{number}", *posting, entry.actor, entry.cause, entry.at, now, book.slot,
        entry.anchor,
    )  # fmt: skip


def entries_of_slot(connection: Connection, dispenser_id: str, slot: int) -> list[Anchored]:
    """Return everything that ever moved this slot's stock, in the order of its anchors."""
    found: list[Anchored] = []
    for fact in facts_of_kinds(connection, dispenser_id, STOCK_KINDS):
        for key, entry in anchored_fact(
            dispenser_id, fact.stream_no, fact.seq, decode_fact(fact.line), fact.corrected_at
        ):
            if key[1] == slot:
                found.append(entry)
    booked = store.booked_operations(connection, dispenser_id, slot)
    found += [anchored_operation(row, row["stream_no"], row["seq"]) for row in booked]
    return sorted(found, key=entry_order)


def refold(
    connection: Connection, key: SlotKey, now: datetime, findings: list[FaultChange]
) -> tuple[SlotBook, Anchor, list[Movement]]:
    """Fold one slot from its beginning; returns its book, its last anchor, and the movements that correct what was posted."""
    book = SlotBook(*key)
    owed: dict[str, tuple[Anchored, Counter[Posting]]] = {}
    last = BEFORE_ALL
    stands: dict[str, FaultChange] = {}
    for entry in entries_of_slot(connection, *key):
        postings = book.apply(entry.entry)
        stands |= {change.code: change for change in findings_of(book, entry, postings) if change.code in REFOUND}
        _, wanted = owed.setdefault(entry.cause, (entry, Counter()))
        for posting in postings:
            wanted[posting._replace(units=1)] += posting.units
        last = entry.anchor
    findings.append(FaultChange(key[0], SLOT_EMPTY, not book.queue, now, key[1]))
    for code in REFOUND:
        # A late count ends what it settles, a late refill what it explains.
        change = stands.get(code) or FaultChange(key[0], code, opened=False, at=now, slot=key[1])
        if not change.opened or code != LOT_CLAIM_DIFFERS:  # a claim that differs only now agreed when it was made
            findings.append(change)
    if book.units < 0:
        findings.append(
            FaultChange(key[0], BOOK_BELOW_ZERO, opened=True, at=now, slot=key[1], detail="after a late entry")
        )
    return book, last, corrections(book, owed, store.movements_of_slot(connection, *key), now)


def corrections(
    book: SlotBook,
    wanted: Mapping[str, tuple[Anchored, Counter[Posting]]],
    posted: Sequence[Movement],
    now: datetime,
) -> list[Movement]:
    """Post what each cause should have moved, less what it has moved; a surplus is reversed."""
    rest: dict[str, Counter[tuple[str, str, str, str]]] = defaultdict(Counter)
    reasons: dict[tuple[str, str, str, str, str], str] = {}
    numbers: Counter[str] = Counter()
    for cause, (_, postings) in wanted.items():
        for posting, units in postings.items():
            key = (posting.source, posting.target, posting.product, posting.lot)
            rest[cause][key] += units
            reasons[cause, *key] = posting.reason
    for movement in posted:
        numbers[movement.cause] = max(numbers[movement.cause], movement.number + 1)
        forward = (movement.source, movement.target, movement.product, movement.lot)
        if movement.reason == "rebooked":
            rest[movement.cause][movement.target, movement.source, movement.product, movement.lot] += movement.units
        else:
            rest[movement.cause][forward] -= movement.units
    found: list[Movement] = []
    for cause, (entry, _) in wanted.items():
        for (source, target, product, lot), units in sorted(rest[cause].items()):
            if units == 0:
                continue
            ends = (source, target) if units > 0 else (target, source)
            # "corrected": a reversal stands there whose posting is gone; it is posted again (only a rebuild meets that).
            reason = reasons.get((cause, source, target, product, lot), "corrected") if units > 0 else "rebooked"
            posting = Posting(*ends, product, lot, abs(units), reason)
            found.append(_movement(book, entry, posting, numbers[cause], now))
            numbers[cause] += 1
    return found
