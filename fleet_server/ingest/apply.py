"""What messages of the facts channel do in one transaction of ingest: judged one after the other, written together."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from fleet_server.database import Connection
from fleet_server.devices import arrivals, gap_store, outgoing, store
from fleet_server.devices.machines import Cursor
from fleet_server.faults.store import FaultChange
from fleet_server.ingest.answers import Answers, Kind, Reply
from fleet_server.ingest.effects import consequences
from fleet_server.ingest.times import Last, corrected, wall
from fleet_server.ingest.trouble import Trouble
from fleet_server.ingest.verdicts import Applies, Beyond, Forked, Misframed, judge
from fleet_server.ingest.writing import Gathered, write
from fleet_server.ledger.booking import COUNT_DUE
from protocol.codec import Batch, FramingError, SchemaError, decode_batch, decode_fact, first_digest
from protocol.messages import Ack, Fork, Gap, Nack

FACT_QUARANTINED = "FACT_QUARANTINED"
STREAM_FORKED = "STREAM_FORKED"
STREAM_GAP = "STREAM_GAP"
NEW_STREAM_LIVES_S = 86_400
USELESS_MAX = 16
"""Messages of one machine in one `take` that bring nothing new, or another stream; an honest one has four on their way."""
RECENT_STREAMS = 4
"""Of each machine so many are read at once; one that speaks of an older stream is looked up."""
FACTS_MAX = 2_000
"""Facts of one machine in one `take`. What is beyond either is not read: the machine sends it again, and the others go on."""
LINES_AHEAD = 100
NOBODY: Mapping[str, str] = {}


class Received(NamedTuple):
    """A message of the facts channel as it arrived."""

    topic: str
    dispenser_id: str
    payload: bytes


@dataclass
class Tally:
    """What one transaction did, for metrics."""

    facts: int = 0
    duplicates: int = 0
    gaps: int = 0
    forks: int = 0
    quarantined: int = 0
    dead_letters: int = 0
    dropped: int = 0
    troubles: list[Trouble] = field(default_factory=list)


@dataclass
class Lines:
    """Lines of one stream, from fact `first` on."""

    first: int
    lines: list[bytes] = field(default_factory=list)


class Transaction:
    """Messages applied in memory: what the database has is read once a machine, what is new waits for `write`.

    A machine is locked from its first message on until the transaction ends, so nothing read can change meanwhile.
    """

    def __init__(self, connection: Connection, epoch: int) -> None:
        self._connection, self._epoch = connection, epoch
        # Every machine asked for, and whether it is registered.
        self._known: dict[str, bool] = {}
        self._streams: dict[tuple[str, str], Cursor] = {}
        self._newest: dict[str, str] = {}
        self._unwritten: dict[tuple[str, int], Lines] = {}
        self._read: dict[tuple[str, int], Lines] = {}
        self._gathered = Gathered()
        self._answers = Answers()
        self._announced = NOBODY
        self._quarantined: list[int] = []
        self.tally = Tally()

    def take(self, received: Sequence[Received], now: datetime, announced: Mapping[str, str] = NOBODY) -> list[Reply]:
        """Apply messages in the order of their arrival; returns the replies that the commit will make true.

        A machine that floods us is heard up to a limit: fairness is that nobody waits for more than that. `announced` are the
        streams on which machines have said that they live, and of which the database may not know yet.
        """
        self._answers = Answers()
        self._announced = announced
        of_machine: dict[str, list[Received]] = defaultdict(list)
        for message in received:
            of_machine[message.dispenser_id].append(message)
        self._open(of_machine)
        for messages in of_machine.values():
            self._hear(messages, now)
        return self._answers.replies(self._epoch, now)

    def write(self, now: datetime) -> None:
        """Write what was gathered; the caller commits."""
        write(self._connection, self._gathered, now)
        self._gathered = Gathered()
        self._unwritten.clear()
        self._read.clear()

    def _open(self, dispenser_ids: Iterable[str]) -> None:
        """Lock the machines that are new to this transaction and read where their streams stand."""
        new = set(dispenser_ids) - self._known.keys()
        if not new:
            return
        registered = store.lock(self._connection, new)
        self._known |= {dispenser_id: dispenser_id in registered for dispenser_id in new}
        for cursor in store.recent_cursors(self._connection, sorted(registered), RECENT_STREAMS) if registered else []:
            self._streams[cursor.dispenser_id, cursor.stream_id] = cursor
            self._newest[cursor.dispenser_id] = cursor.stream_id

    def _hear(self, messages: Sequence[Received], now: datetime) -> None:
        """Apply what one machine has sent, up to its share."""
        useless = useful = 0
        for place, message in enumerate(messages):
            if useless >= USELESS_MAX or useful >= FACTS_MAX:
                self.tally.dropped += len(messages) - place
                return
            before, stream = self.tally.facts, self._newest.get(message.dispenser_id)
            self._read_message(message, now)
            new = self.tally.facts - before
            useful += new
            useless += not new or self._newest.get(message.dispenser_id) != stream

    def _read_message(self, message: Received, now: datetime) -> None:
        try:
            batch = decode_batch(message.payload)
        except FramingError as error:
            self._bury(message, str(error), now)
            # The machine is told if it ever had a stream that the answer can name.
            newest = self._newest.get(message.dispenser_id)
            if newest is not None:
                self._answers.add(Nack, self._streams[message.dispenser_id, newest], None, str(error)[:200])
            return
        header = batch.header
        if header.dispenser_id != message.dispenser_id:
            self._bury(message, f"dispenser_id {header.dispenser_id!r} in header: expected that of the topic", now)
        elif not self._known[message.dispenser_id]:
            reason = f"dispenser_id {message.dispenser_id!r}: expected a registered dispenser"
            self._bury(message, reason, now)
            digest = first_digest(header.dispenser_id, header.stream_id)
            stranger = Cursor(header.dispenser_id, 0, header.stream_id, 0, digest)
            self._answers.add(Nack, stranger, header.sent_at_ms, reason)
        else:
            self._apply_batch(batch, now)

    def _bury(self, message: Received, reason: str, now: datetime) -> None:
        self._gathered.dead.append((message.topic, message.payload[:65_536], reason, now))
        self.tally.dead_letters += 1

    def _apply_batch(self, batch: Batch, now: datetime) -> None:
        header = batch.header
        cursor = self._cursor(header.dispenser_id, header.stream_id) or self._new_stream(batch)
        key = (cursor.dispenser_id, cursor.stream_no)
        if header.oldest and header.first_seq > cursor.through_seq + 1:
            if self._is_back(cursor, batch.lines):
                self._fork(cursor, header.first_seq, batch.lines, now)
                self._answers.add(Fork, cursor, header.sent_at_ms)
                return
            cursor = self._go_on_after_gap(cursor, batch, now)
        match judge(batch, cursor, lambda first, last: self._stored(cursor, first, last)):
            case Applies(first_seq, lines, _) if lines and self._is_back(cursor, lines):
                self._fork(cursor, first_seq, lines, now)
                self._answers.add(Fork, cursor, header.sent_at_ms)
            case Applies(first_seq, lines, digest):
                self.tally.duplicates += len(batch.lines) - len(lines)
                if lines:
                    cursor = self._apply_lines(cursor, first_seq, lines, digest, now)
                self._answers.add(Ack, cursor, header.sent_at_ms)
            case Beyond():
                self.tally.gaps += 1
                self._note("gap", *key, cursor.through_seq + 1, header.first_seq - cursor.through_seq - 1)
                self._answers.add(Gap, cursor, header.sent_at_ms)
            case Misframed(reason):
                self._answers.add(Nack, cursor, header.sent_at_ms, reason)
            case Forked(first_seq, lines) if self._is_in_gap(key, first_seq, len(lines)):
                # It lay with a broker since before the gap: an old repeat, which nothing here can be compared with.
                self._answers.add(Ack, cursor, header.sent_at_ms)
            case Forked(first_seq, lines):
                self._fork(cursor, first_seq, lines, now)
                self._answers.add(Fork, cursor, header.sent_at_ms)

    def _cursor(self, dispenser_id: str, stream_id: str) -> Cursor | None:
        key = (dispenser_id, stream_id)
        newest = self._newest.get(dispenser_id)
        if (
            key not in self._streams
            and newest is not None
            and self._streams[dispenser_id, newest].stream_no > RECENT_STREAMS
        ):
            found = store.cursor_of(self._connection, dispenser_id, stream_id)
            if found is not None:
                self._streams[key] = found
        return self._streams.get(key)

    def _is_back(self, cursor: Cursor, lines: Sequence[bytes]) -> bool:
        """Tell whether a machine lives again on a stream that another has followed: an old card was put back.

        Its new facts come after those of the later stream, and must not be ordered before them. What only arrives late from the
        time before the later stream is in its place. The machine's own words decide, and where its clock is wrong, its announcement.
        """
        newest = self._streams.get((cursor.dispenser_id, self._newest.get(cursor.dispenser_id, cursor.stream_id)))
        if newest is None or newest.stream_no <= cursor.stream_no:
            return False
        if _is_later(lines[-1], newest.last_at):
            return True
        lives_on = self._announced.get(cursor.dispenser_id)
        if lives_on is None:
            session = store.current_session(self._connection, cursor.dispenser_id)
            lives_on = session.stream_id if session is not None else None
        return lives_on == cursor.stream_id

    def _new_stream(self, batch: Batch) -> Cursor:
        """Return the cursor before the first fact; the stream begins when that fact is applied."""
        header = batch.header
        digest = first_digest(header.dispenser_id, header.stream_id)
        newest = self._newest.get(header.dispenser_id)
        if newest is None:
            return Cursor(header.dispenser_id, 1, header.stream_id, 0, digest)
        former = self._streams[header.dispenser_id, newest]
        # A clock that a new card sets back to before the old one's last fact is as wrong as one that jumps within a stream.
        return Cursor(header.dispenser_id, former.stream_no + 1, header.stream_id, 0, digest, last_at=former.last_at)

    def _begin(self, cursor: Cursor, now: datetime) -> None:
        self._gathered.begin(cursor, replaces=cursor.dispenser_id in self._newest, now=now)
        self._newest[cursor.dispenser_id] = cursor.stream_id

    def _go_on_after_gap(self, cursor: Cursor, batch: Batch, now: datetime) -> Cursor:
        """Take the machine's word that it keeps nothing older: without it the stream would stand still for ever.

        What lies between is lost, and never in silence: the gap is kept, a fault opens, and a count is due.
        """
        # Lines that are not yet written have no holes.
        self.write(now)
        if cursor.through_seq == 0:
            self._begin(cursor, now)
        first, last, digest = (
            cursor.through_seq + 1,
            batch.header.first_seq - 1,
            bytes.fromhex(batch.header.prev_digest),
        )
        place = (cursor.dispenser_id, cursor.stream_no)
        self._note("facts lost", *place, first, last - first + 1)
        gap_store.keep_gap(self._connection, gap_store.StreamGap(*place, first, last, digest, now))
        detail = f"facts {first} to {last} of stream {cursor.stream_no} are neither here nor on the machine any more"
        for code in (STREAM_GAP, COUNT_DUE):
            change = FaultChange(cursor.dispenser_id, code, opened=True, at=now, detail=detail)
            self._gathered.faults.append(change)
        return cursor._replace(through_seq=last, digest=digest)

    def _is_in_gap(self, key: tuple[str, int], first: int, lines: int) -> bool:
        return gap_store.is_in_gap(self._connection, *key, first, first + lines - 1)

    def _stored(self, cursor: Cursor, first: int, last: int) -> list[bytes]:
        """Return lines of a stream, those that are not yet written included."""
        key = (cursor.dispenser_id, cursor.stream_no)
        unwritten = self._unwritten.get(key)
        if unwritten is None:
            return self._written_lines(key, cursor.through_seq, first, last)
        through = unwritten.first - 1
        written = self._written_lines(key, through, first, min(last, through)) if first <= through else []
        return written + unwritten.lines[max(0, first - unwritten.first) : max(0, last + 1 - unwritten.first)]

    def _written_lines(self, key: tuple[str, int], through: int, first: int, last: int) -> list[bytes]:
        """Read some more at once: where one batch comes again, those after it do."""
        read = self._read.get(key)
        if read is None or first < read.first or last >= read.first + len(read.lines):
            ahead = min(through, max(last, first + LINES_AHEAD - 1))
            read = Lines(first, store.lines_between(self._connection, *key, first, ahead))
            if len(read.lines) <= ahead - first:  # a gap of the stream lies between: places do not tell numbers
                return store.lines_between(self._connection, *key, first, last)
            self._read[key] = read
        return read.lines[first - read.first : last + 1 - read.first]

    def _apply_lines(
        self,
        cursor: Cursor,
        first_seq: int,
        lines: Sequence[bytes],
        digest: bytes,
        now: datetime,
    ) -> Cursor:
        dispenser_id, stream_no, stream_id = cursor.dispenser_id, cursor.stream_no, cursor.stream_id
        key = (dispenser_id, stream_no)
        if cursor.through_seq == 0:
            self._begin(cursor, now)
        last = Last(cursor.last_at, cursor.last_boot_id, cursor.last_mono_ms)
        for seq, line in enumerate(lines, first_seq):
            last = self._apply_line((dispenser_id, stream_no, seq), line, last, now)
        self.tally.facts += len(lines)
        unwritten = self._unwritten.get(key)
        if unwritten is None:
            self._unwritten[key] = Lines(first_seq, [*lines])
        else:
            unwritten.lines.extend(lines)
        if self._quarantined:
            self._answers.quarantined(cursor, self._quarantined)
            self._quarantined = []
        moved = Cursor(dispenser_id, stream_no, stream_id, first_seq + len(lines) - 1, digest, *last)
        self._streams[dispenser_id, stream_id] = moved
        self._gathered.moved[key] = moved, now
        return moved

    def _apply_line(self, place: tuple[str, int, int], line: bytes, last: Last, now: datetime) -> Last:
        try:
            fact = decode_fact(line)
        except SchemaError as error:
            self._quarantine(place, line, str(error), last, now)
            return last
        said = wall(fact)
        at = corrected(fact, said, last, now)
        self._gathered.facts.append((*place, line, fact.kind, said, at, now, None))
        consequences(self._gathered.effects, place, fact, at, now)
        return Last(at, fact.boot_id, fact.mono_ms)

    def _quarantine(self, place: tuple[str, int, int], line: bytes, reason: str, last: Last, now: datetime) -> None:
        self._gathered.facts.append((*place, line, None, None, last.at or now, now, reason))
        detail = f"fact {place[2]}: {reason}"[:200]
        self._gathered.faults.append(FaultChange(place[0], FACT_QUARANTINED, opened=True, at=now, detail=detail))
        self._quarantined.append(place[2])
        self.tally.quarantined += 1
        self._note("fact quarantined", *place)

    def _note(self, what: str, dispenser_id: str, stream_no: int, seq: int, facts: int = 1) -> None:
        self.tally.troubles.append(Trouble(what, dispenser_id, stream_no, seq, facts))

    def _fork(self, cursor: Cursor, first_seq: int, lines: tuple[bytes, ...], now: datetime) -> None:
        self.tally.forks += 1
        self._note("stream forked", cursor.dispenser_id, cursor.stream_no, first_seq, len(lines))
        arrivals.keep_forked(self._connection, cursor.dispenser_id, cursor.stream_no, first_seq, lines, now)
        detail = f"fact {first_seq} of stream {cursor.stream_no} came with another history: a restored card?"
        change = FaultChange(cursor.dispenser_id, STREAM_FORKED, opened=True, at=now, detail=detail)
        self._gathered.faults.append(change)
        way_out = {"kind": "new_stream", "stream_id": cursor.stream_id}
        pending = outgoing.pending(self._connection, cursor.dispenser_id)
        # One past its life is sent no more, whether or not a job has noted that.
        if not any(o.payload == way_out and (o.expires_at is None or o.expires_at > now) for o in pending):
            outgoing.order(
                self._connection,
                cursor.dispenser_id,
                "new_stream",
                lives_s=NEW_STREAM_LIVES_S,
                now=now,
                stream_id=cursor.stream_id,
            )


def _is_later(line: bytes, than: datetime | None) -> bool:
    """Tell whether a fact was recorded after a moment, by a clock that its machine trusts."""
    try:
        fact = decode_fact(line)
    except SchemaError:
        return False
    return than is not None and fact.clock_trusted and wall(fact) > than


def stand(
    connection: Connection, kind: Kind, streams: Sequence[tuple[str, str]], now: datetime, epoch: int
) -> list[Reply]:
    """Say unasked where we stand in streams, (dispenser_id, stream_id).

    An Ack makes machines send again what a new epoch no longer has, a Gap also all that they have on their way.
    """
    known = store.recent_cursors(connection, sorted({dispenser_id for dispenser_id, _ in streams}), RECENT_STREAMS)
    cursors = {(cursor.dispenser_id, cursor.stream_id): cursor for cursor in known}
    answers = Answers()
    for place in streams:
        cursor = cursors.get(place) or store.cursor_of(connection, *place)
        answers.add(kind, cursor or Cursor(place[0], 0, place[1], 0, first_digest(*place)), None)
    return answers.replies(epoch, now)


def apply(connection: Connection, received: Sequence[Received], now: datetime, epoch: int) -> tuple[list[Reply], Tally]:
    """Take and write messages at once."""
    transaction = Transaction(connection, epoch)
    replies = transaction.take(received, now)
    transaction.write(now)
    return replies, transaction.tally
