"""The machine's durable memory: one SQLite file with its numbered, chained facts and the stock they stand for.

Everything durable happens in `record`: one transaction, committed before anything is done about it. What is held in
memory is a mirror that changes only after the commit.
"""

import json
import random
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from protocol.codec import cut, encode_fact, first_digest, next_digest
from protocol.messages import Fact
from protocol.versions import KEPT_FACT_DAYS

RESERVE_BYTES: Final = 256 * 1024
"""A file given up when the disk is full: on a full disk SQLite cannot even delete."""

DAY_MS: Final = 86_400_000

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (seq INTEGER PRIMARY KEY, line BLOB NOT NULL, digest BLOB NOT NULL, at_ms INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS former_facts (stream_id TEXT, seq INTEGER, line BLOB NOT NULL, PRIMARY KEY (stream_id, seq));
CREATE TABLE IF NOT EXISTS intents (board_sequence INTEGER PRIMARY KEY, intent TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS slots (slot INTEGER PRIMARY KEY, book TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS orders (order_id TEXT PRIMARY KEY, kind TEXT NOT NULL, outcome TEXT, detail TEXT) WITHOUT ROWID;
"""


BEGINS: Final = {"acked_through": 0, "books_version": 0, "given_up_through": 0}
"""What is known of a stream that begins."""


class OutboxError(RuntimeError):
    """The outbox cannot be read or written: nothing may be vended."""


class OutboxDamagedError(OutboxError):
    """The file's own chain does not add up; it is set aside whole, and a new stream begins."""


@dataclass(frozen=True, slots=True)
class Intent:
    """A vend that was begun: committed before the motor turns."""

    board_sequence: int
    slot: int
    product: str | None
    lot: str | None
    test: bool = False
    order_id: str | None = None
    life_count: int | None = None


@dataclass(slots=True)
class SlotBook:
    """What the machine believes of a slot: its queue of (lot, packs), a reason that blocks it, whether to try it if empty."""

    queue: list[tuple[str, int]] = field(default_factory=list)
    blocked_by: str | None = None
    try_once: bool = False

    def front(self) -> str | None:
        """The lot of the next pack."""
        return self.queue[0][0] if self.queue else None

    def less_one(self) -> "SlotBook":
        """The same book without its front pack; an empty one stays empty."""
        if not self.queue:
            return self.copy()
        (lot, packs), *rest = self.queue
        return SlotBook(([(lot, packs - 1)] if packs > 1 else []) + rest, self.blocked_by, self.try_once)

    def copy(self) -> "SlotBook":
        """A copy to change."""
        return SlotBook(list(self.queue), self.blocked_by, self.try_once)


class Outbox:
    """The file and its mirror. `durable` is synchronous=FULL; without it a power cut may lose what was committed last."""

    def __init__(
        self, path: Path | str, dispenser_id: str, *, durable: bool = True, randomness: random.Random | None = None
    ) -> None:
        self.dispenser_id = dispenser_id
        self._path = None if str(path) == ":memory:" else Path(path)
        self._randomness = randomness
        try:
            self._db = sqlite3.connect(str(path), isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
            self._db.execute("PRAGMA busy_timeout=5000")
            self._db.executescript(SCHEMA)
            self._load()
        except sqlite3.DatabaseError as error:
            raise OutboxDamagedError(f"outbox {path}: {error}") from error
        self._keep_reserve()

    # ------------------------------------------------------------ opening

    def _load(self) -> None:
        self.meta: dict[str, Any] = {k: json.loads(v) for k, v in self._db.execute("SELECT key, value FROM meta")}
        if "stream_id" not in self.meta:
            with self._transaction():
                self._put_meta({"stream_id": self._new_stream_id(), "dispenser_id": self.dispenser_id})
        if self.meta["dispenser_id"] != self.dispenser_id:
            raise OutboxError(
                f"outbox belongs to dispenser_id {self.meta['dispenser_id']!r}: expected {self.dispenser_id!r}"
            )
        self.slots = {slot: _read_book(book) for slot, book in self._db.execute("SELECT slot, book FROM slots")}
        self.intents = [Intent(**json.loads(row[0])) for row in self._db.execute("SELECT intent FROM intents")]
        self._check_chain()

    def _check_chain(self) -> None:
        """Compute the chain of all facts again: one flipped byte shows."""
        self.last_seq = int(self.meta.get("given_up_through", 0))
        given_up = self.meta.get("given_up_digest") if self.last_seq else None
        self.last_digest = bytes.fromhex(given_up) if given_up else first_digest(self.dispenser_id, self.stream_id)
        first = self._db.execute("SELECT seq, line, digest FROM facts ORDER BY seq")
        for seq, line, digest in first:
            if self.last_seq == 0 and seq > 1:  # given up by a version that kept no digest of it
                self.last_seq, self.last_digest = seq, digest
                continue
            if seq != self.last_seq + 1 or next_digest(self.last_digest, line) != digest:
                raise OutboxDamagedError(f"fact {seq}: its bytes do not give the stored digest")
            self.last_seq, self.last_digest = seq, digest
        self.recorded_at_ms = 0

    def _new_stream_id(self) -> str:
        if self._randomness is not None:
            return f"{self._randomness.getrandbits(128):032x}"
        return secrets.token_hex(16)

    def _keep_reserve(self) -> None:
        if self._path is None:
            return
        reserve = self._path.with_suffix(".reserve")
        with suppress(OSError):
            if not reserve.exists():
                reserve.write_bytes(b"\0" * RESERVE_BYTES)

    def give_up_reserve(self) -> None:
        """Make room on a full disk."""
        if self._path is not None:
            with suppress(OSError):
                self._path.with_suffix(".reserve").unlink(missing_ok=True)

    # ------------------------------------------------------------ what is known

    @property
    def stream_id(self) -> str:
        """The id of the current stream."""
        stream_id: str = self.meta["stream_id"]
        return stream_id

    @property
    def acked_through(self) -> int:
        """The last fact that the server has committed, as far as the machine knows."""
        return int(self.meta.get("acked_through", 0))

    @property
    def pending(self) -> int:
        """Facts that the server has not acknowledged."""
        return self.last_seq - self.acked_through

    def digest(self, seq: int) -> bytes:
        """Return the digest of a kept fact, or of the stream's beginning; raises OutboxError for one that was pruned."""
        if seq == self.last_seq:
            return self.last_digest
        if seq == 0:
            return first_digest(self.dispenser_id, self.stream_id)
        if seq == self.meta.get("given_up_through"):
            return bytes.fromhex(self.meta["given_up_digest"])
        row = self._db.execute("SELECT digest FROM facts WHERE seq = ?", (seq,)).fetchone()
        if row is None:
            raise OutboxError(f"fact {seq}: not kept any more")
        digest: bytes = row[0]
        return digest

    def lines(self, first_seq: int, facts_max: int) -> list[bytes]:
        """Return the lines of one batch beginning at `first_seq`."""
        rows = self._db.execute("SELECT line FROM facts WHERE seq >= ? ORDER BY seq LIMIT ?", (first_seq, facts_max))
        return cut((row[0] for row in rows), facts_max)

    def lines_after(self, seq: int) -> Iterator[bytes]:
        """Yield all kept lines after a fact."""
        for row in self._db.execute("SELECT line FROM facts WHERE seq > ? ORDER BY seq", (seq,)):
            yield row[0]

    def oldest_kept(self) -> int:
        """Return the first fact that is kept; one past the last when none is."""
        row = self._db.execute("SELECT min(seq) FROM facts").fetchone()
        return self.last_seq + 1 if row[0] is None else int(row[0])

    def first_to_send(self) -> int:
        """Return the first fact that can still be sent: its bytes are kept, and so is the digest before it."""
        oldest = self.oldest_kept()
        return oldest if oldest == int(self.meta.get("given_up_through", 0)) + 1 else oldest + 1

    def order(self, order_id: str) -> tuple[str, str | None, str] | None:
        """Return (kind, outcome or None while it runs, detail) of an order that was begun."""
        query = "SELECT kind, outcome, coalesce(detail, '') FROM orders WHERE order_id = ?"
        row: tuple[str, str | None, str] | None = self._db.execute(query, (order_id,)).fetchone()
        return row

    def open_orders(self) -> list[tuple[str, str]]:
        """Return (order_id, kind) of orders that were begun and have no answer."""
        return list(self._db.execute("SELECT order_id, kind FROM orders WHERE outcome IS NULL"))

    # ------------------------------------------------------------ what is recorded

    def record(
        self,
        *facts: Fact,
        slots: Mapping[int, SlotBook] | None = None,
        begin: Intent | None = None,
        end: int | None = None,
        meta: Mapping[str, Any] | None = None,
        order: tuple[str, str, str | None, str] | None = None,
    ) -> None:
        """Commit facts together with what they stand for; raises OutboxError, and then nothing has happened.

        `begin` and `end` add and remove an intent (by board sequence); `order` is (order_id, kind, outcome, detail).
        """
        encoded = []
        seq, digest = self.last_seq, self.last_digest
        for fact in facts:
            line = encode_fact(fact)
            seq, digest = seq + 1, next_digest(digest, line)
            encoded.append((seq, line, digest, fact.at_ms))
        try:
            with self._transaction():
                self._db.executemany("INSERT INTO facts VALUES (?, ?, ?, ?)", encoded)
                for slot, book in (slots or {}).items():
                    text = json.dumps(asdict(book))
                    self._db.execute("INSERT OR REPLACE INTO slots VALUES (?, ?)", (slot, text))
                if begin is not None:
                    text = json.dumps(asdict(begin))
                    self._db.execute("INSERT INTO intents VALUES (?, ?)", (begin.board_sequence, text))
                if end is not None:
                    self._db.execute("DELETE FROM intents WHERE board_sequence = ?", (end,))
                if order is not None:
                    self._db.execute("INSERT OR REPLACE INTO orders VALUES (?, ?, ?, ?)", order)
                self._put_meta(meta or {})
        except (sqlite3.Error, OSError) as error:
            raise OutboxError(f"outbox: {error}") from error
        self.last_seq, self.last_digest = seq, digest
        self.meta.update(meta or {})
        self.slots.update(slots or {})
        self.intents = [i for i in self.intents if i.board_sequence != end] + ([begin] if begin else [])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    def _put_meta(self, values: Mapping[str, Any]) -> None:
        rows = [(key, json.dumps(value)) for key, value in values.items()]
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)
        if "stream_id" in values:
            self.meta.update(values)

    def acknowledge(self, through_seq: int, epoch: int, at_ms: int) -> None:
        """Note the server's cursor; what is older than KEPT_FACT_DAYS and acknowledged is given up, once a day."""
        self.record(meta={"acked_through": through_seq, "epoch": epoch})
        if at_ms - self.recorded_at_ms > DAY_MS:
            self.recorded_at_ms = at_ms
            with suppress(sqlite3.Error):
                self._give_up(through_seq, at_ms - KEPT_FACT_DAYS * DAY_MS)

    def _give_up(self, through_seq: int, oldest_ms: int) -> None:
        """Give up what lies before the first fact that is still to be kept, whatever a wrong clock says of those behind it.

        The digest of the last one given up is kept: the chain goes on from it.
        """
        query = "SELECT min(seq) FROM facts WHERE seq >= ? OR at_ms >= ?"
        (first,) = self._db.execute(query, (through_seq, oldest_ms)).fetchone()
        last = self._db.execute("SELECT seq, digest FROM facts WHERE seq = ?", ((first or 0) - 1,)).fetchone()
        if last is None:
            return
        given_up = {"given_up_through": last[0], "given_up_digest": last[1].hex()}
        with self._transaction():
            self._db.execute("DELETE FROM facts WHERE seq < ?", (first,))
            self._put_meta(given_up)
        self.meta.update(given_up)

    def begin_stream(self) -> None:
        """Begin a new stream; the facts of the former one are kept aside."""
        stream_id = self._new_stream_id()
        try:
            with self._transaction():
                self._db.execute(
                    "INSERT OR REPLACE INTO former_facts SELECT ?, seq, line FROM facts", (self.stream_id,)
                )
                self._db.execute("DELETE FROM facts")
                self._put_meta(BEGINS | {"stream_id": stream_id})
        except (sqlite3.Error, OSError) as error:
            raise OutboxError(f"outbox: {error}") from error
        self.meta.update(BEGINS | {"stream_id": stream_id})
        self.last_seq, self.last_digest = 0, first_digest(self.dispenser_id, stream_id)

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _read_book(text: str) -> SlotBook:
    value = json.loads(text)
    return SlotBook([(lot, packs) for lot, packs in value["queue"]], value["blocked_by"], value["try_once"])


def open_or_set_aside(
    path: Path, dispenser_id: str, *, durable: bool = True, randomness: random.Random | None = None
) -> tuple[Outbox, str | None]:
    """Open the outbox; a damaged one is set aside whole under another name and a new stream begins. Returns why."""
    try:
        return Outbox(path, dispenser_id, durable=durable, randomness=randomness), None
    except OutboxDamagedError as error:
        number = 1
        while (aside := path.with_suffix(f".damaged-{number}")).exists():
            number += 1
        path.rename(aside)
        for suffix in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
        return Outbox(path, dispenser_id, durable=durable, randomness=randomness), f"{error}; kept as {aside.name}"
