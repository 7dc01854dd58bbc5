"""One transaction of ingest: batches of many machines become facts, cursors, movements, faults and answers."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from fleet_server.database import Connection
from fleet_server.devices import outgoing, outgoing_store, store
from fleet_server.devices.machines import Cursor, StoredFact
from fleet_server.faults.store import FaultChange, record
from fleet_server.ingest.effects import Consequences, consequences
from fleet_server.ingest.times import corrected, wall
from fleet_server.ingest.verdicts import Applies, Beyond, Forked, Misframed, judge
from fleet_server.ledger.booking import COUNT_DUE, book_entries
from fleet_server.ledger.fold import Anchored
from fleet_server.ledger.operations import bind_waiting
from fleet_server.ledger.store import close_door, open_doors
from fleet_server.ledger.telling import tell_books
from protocol.codec import Batch, FramingError, SchemaError, decode_batch, decode_fact, first_digest
from protocol.messages import Ack, AckMessage, Fork, Gap, Nack

FACT_QUARANTINED = "FACT_QUARANTINED"
STREAM_FORKED = "STREAM_FORKED"
STREAM_REPLACED = "STREAM_REPLACED"
NEW_STREAM_LIVES_S = 86_400


@dataclass(frozen=True, slots=True)
class Received:
    """A message of the facts channel as it arrived."""

    topic: str
    dispenser_id: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to a machine, to be sent after the commit."""

    dispenser_id: str
    message: AckMessage


@dataclass
class Tally:
    """What one transaction did, for metrics."""

    facts: int = 0
    duplicates: int = 0
    gaps: int = 0
    forks: int = 0
    quarantined: int = 0
    dead_letters: int = 0


@dataclass
class Transaction:
    """Everything one transaction of ingest gathers before it is written, in as few statements as there are tables."""

    connection: Connection
    now: datetime
    epoch: int
    streams: dict[tuple[str, str], Cursor] = field(default_factory=dict)
    newest: dict[str, int] = field(default_factory=dict)
    moved: dict[tuple[str, str], Cursor] = field(default_factory=dict)
    facts: list[StoredFact] = field(default_factory=list)
    dead: list[tuple[str, bytes, str]] = field(default_factory=list)
    faults: list[FaultChange] = field(default_factory=list)
    effects: Consequences = field(default_factory=Consequences)
    replies: list[Reply] = field(default_factory=list)
    replaced: dict[str, str] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)


def apply(connection: Connection, received: Sequence[Received], now: datetime, epoch: int) -> tuple[list[Reply], Tally]:
    """Apply messages in the order of their arrival; returns the replies that the commit makes true."""
    work = Transaction(connection, now, epoch)
    framed = [(message, batch) for message in received if (batch := _frame(message, work)) is not None]
    known = store.lock(connection, {message.dispenser_id for message, _ in framed}) if framed else set()
    for cursor in store.cursors(connection, sorted(known)) if known else []:
        work.streams[cursor.dispenser_id, cursor.stream_id] = cursor
        work.newest[cursor.dispenser_id] = cursor.stream_no
    for message, batch in framed:
        if message.dispenser_id in known:
            _apply_batch(work, batch)
        else:
            _refuse(work, message, batch, f"dispenser_id {message.dispenser_id!r}: expected a registered dispenser")
    _write(work)
    return work.replies, work.tally


def _frame(message: Received, work: Transaction) -> Batch | None:
    try:
        batch = decode_batch(message.payload)
    except FramingError as error:
        _dead(work, message, str(error))
        _nack_unread(work, message, str(error))
        return None
    if batch.header.dispenser_id != message.dispenser_id:
        _dead(work, message, f"dispenser_id {batch.header.dispenser_id!r} in header: expected that of the topic")
        return None
    return batch


def _dead(work: Transaction, message: Received, reason: str) -> None:
    work.dead.append((message.topic, message.payload[:65_536], reason))
    work.tally.dead_letters += 1


def _nack_unread(work: Transaction, message: Received, reason: str) -> None:
    """Tell a machine that its batch could not be read, if it ever had a stream that the answer can name."""
    cursors = store.cursors(work.connection, [message.dispenser_id])
    if cursors:
        _reply(work, cursors[-1], None, Nack, reason=reason[:200])


def _refuse(work: Transaction, message: Received, batch: Batch, reason: str) -> None:
    _dead(work, message, reason)
    header = batch.header
    digest = first_digest(header.dispenser_id, header.stream_id)
    cursor = Cursor(header.dispenser_id, 0, header.stream_id, 0, digest)
    _reply(work, cursor, header.sent_at_ms, Nack, reason=reason[:200])


def _reply(
    work: Transaction, cursor: Cursor, sent_at_ms: int | None, kind: Callable[..., AckMessage], **more: object
) -> None:
    message = kind(
        server_epoch=work.epoch,
        stream_id=cursor.stream_id,
        through_seq=cursor.through_seq,
        digest=cursor.digest.hex(),
        server_at_ms=int(work.now.timestamp() * 1000),
        sent_at_ms=sent_at_ms,
        **more,
    )
    work.replies.append(Reply(cursor.dispenser_id, message))


def _apply_batch(work: Transaction, batch: Batch) -> None:
    header = batch.header
    cursor = work.streams.get((header.dispenser_id, header.stream_id)) or _new_stream(work, batch)

    def stored(first: int, last: int) -> list[bytes]:
        pending = {f.seq: f.line for f in work.facts if (f.dispenser_id, f.stream_no) == key}
        kept = store.lines_between(work.connection, *key, first, last)
        return kept + [pending[seq] for seq in range(first + len(kept), last + 1)]

    key = (cursor.dispenser_id, cursor.stream_no)
    match judge(batch, cursor, stored):
        case Applies(first_seq, lines, digests):
            work.tally.duplicates += len(batch.lines) - len(lines)
            quarantined: list[int] = []
            for place, line in enumerate(lines):
                cursor = _apply_line(work, cursor, first_seq + place, line, digests[place], quarantined)
            if lines:
                work.streams[header.dispenser_id, header.stream_id] = cursor
                work.moved[header.dispenser_id, header.stream_id] = cursor
            _reply(work, cursor, header.sent_at_ms, Ack, quarantined=quarantined)
        case Beyond():
            work.tally.gaps += 1
            _reply(work, cursor, header.sent_at_ms, Gap)
        case Misframed(reason):
            _reply(work, cursor, header.sent_at_ms, Nack, reason=reason)
        case Forked(first_seq, lines):
            _fork(work, cursor, first_seq, lines)
            _reply(work, cursor, header.sent_at_ms, Fork)


def _new_stream(work: Transaction, batch: Batch) -> Cursor:
    header = batch.header
    dispenser_id = header.dispenser_id
    number = work.newest.get(dispenser_id, 0) + 1
    cursor = Cursor(dispenser_id, number, header.stream_id, 0, first_digest(dispenser_id, header.stream_id))
    # A stream begins with its first fact; a batch beyond it is answered as a gap and leaves nothing behind.
    if header.first_seq == 1:
        work.newest[dispenser_id] = number
        if number > 1:
            work.replaced[dispenser_id] = header.stream_id
    return cursor


def _apply_line(
    work: Transaction, cursor: Cursor, seq: int, line: bytes, digest: bytes, quarantined: list[int]
) -> Cursor:
    work.tally.facts += 1
    moved = replace(cursor, through_seq=seq, digest=digest)
    place = (cursor.dispenser_id, cursor.stream_no, seq)
    try:
        fact = decode_fact(line)
    except SchemaError as error:
        reason = str(error)
        at = cursor.last_at or work.now
        work.facts.append(StoredFact(*place, line, None, None, at, work.now, reason))
        work.faults.append(
            FaultChange(
                cursor.dispenser_id, FACT_QUARANTINED, opened=True, at=work.now, detail=f"fact {seq}: {reason}"[:200]
            )
        )
        work.tally.quarantined += 1
        quarantined.append(seq)
        return moved
    at = corrected(fact, cursor, work.now)
    work.facts.append(StoredFact(*place, line, fact.kind, wall(fact), at, work.now, None))
    consequences(work.effects, cursor.dispenser_id, cursor.stream_no, seq, fact, at)
    return replace(moved, last_at=at, last_boot_id=fact.boot_id, last_mono_ms=fact.mono_ms)


def _fork(work: Transaction, cursor: Cursor, first_seq: int, lines: tuple[bytes, ...]) -> None:
    work.tally.forks += 1
    store.keep_forked(work.connection, cursor.dispenser_id, cursor.stream_no, first_seq, lines, work.now)
    detail = f"fact {first_seq} of stream {cursor.stream_no} came with another history: a restored card?"
    work.faults.append(FaultChange(cursor.dispenser_id, STREAM_FORKED, opened=True, at=work.now, detail=detail))
    waits = outgoing.pending(work.connection, cursor.dispenser_id)
    if not any(message.payload.get("kind") == "new_stream" for message in waits):
        outgoing.order(work.connection, cursor.dispenser_id, "new_stream", lives_s=NEW_STREAM_LIVES_S, now=work.now)


def _write(work: Transaction) -> None:
    """Write what was gathered. Facts come before the ledger: a slot that is folded again reads them."""
    connection, now, effects = work.connection, work.now, work.effects
    store.keep_dead_letters(connection, work.dead, now)
    store.write_facts(connection, work.facts)
    store.write_cursors(connection, list(work.moved.values()), now)
    open_doors(connection, effects.doors_opened)
    entries: dict[tuple[str, int], list[Anchored]] = defaultdict(list)
    for key, entry in effects.entries:
        entries[key].append(entry)
    told = set()
    for door in effects.doors_opened:
        for key, bound in bind_waiting(connection, door.dispenser_id, door.session, door.stream_no, door.seq).items():
            entries[key] += bound
            told.add(door.dispenser_id)
    for closing in effects.doors_closed:
        close_door(connection, closing.dispenser_id, closing.stream_no, closing.seq, closing.session, closing.at)
    findings = book_entries(connection, entries, now)
    _answer(work)
    for dispenser_id, stream_id in work.replaced.items():
        told.add(dispenser_id)
        outgoing_store.orders_unknown(connection, dispenser_id, stream_id, now)
        for code in (STREAM_REPLACED, COUNT_DUE):
            work.faults.append(FaultChange(dispenser_id, code, opened=True, at=now, detail="a new card or outbox"))
    record(connection, [*work.faults, *effects.faults, *findings])
    tell_books(connection, sorted(told), now)


def _answer(work: Transaction) -> None:
    for answer in work.effects.answers:
        outgoing_store.answer(
            work.connection,
            answer.dispenser_id,
            answer.channel,
            answer.key,
            answer.outcome,
            answer.detail,
            work.now,
        )
