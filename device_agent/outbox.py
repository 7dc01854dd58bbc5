"""The machine's durable memory: one SQLite file with its numbered, chained facts and the stock they stand for.

Everything durable happens in one transaction, committed before anything is done about it. What is held in memory is a
mirror that changes only after the commit. When the disk fails in a commit, the file is opened anew and looked at: the
commit happened, or it did not, and until that is known nothing is recorded.
"""

import random
import secrets
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pydantic_core import from_json, to_json

from device_agent.seal import Mark, Reserve, Seal, row_sum
from device_agent.stock import Intent, SlotBook
from device_agent.storage_errors import OutboxDamagedError, OutboxError, at_opening, code_of
from protocol.codec import cut, encode_fact, first_digest, next_digest
from protocol.messages import Fact
from protocol.versions import KEPT_FACT_DAYS

__all__ = ["Intent", "Outbox", "OutboxDamagedError", "OutboxError", "SlotBook", "open_or_set_aside"]

DAY_MS: Final = 86_400_000

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS facts (seq INTEGER PRIMARY KEY, line BLOB NOT NULL, digest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS former_facts (stream_id TEXT, seq INTEGER, line BLOB NOT NULL, PRIMARY KEY (stream_id, seq));
CREATE TABLE IF NOT EXISTS state (kind TEXT, name TEXT, value TEXT NOT NULL, PRIMARY KEY (kind, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seal (id INTEGER PRIMARY KEY, number INTEGER NOT NULL, digest BLOB NOT NULL);
"""

BEGINS: Final[dict[str, Any]] = {
    "acked_through": 0,
    "books_version": 0,
    "given_up_through": 0,
    "given_up_digest": None,
    "acked_days": [],
}
"""What is known of a stream that begins."""

Key = tuple[str, str]
"""(kind, name) of a state row. Kinds: meta, slot, intent, order."""
Changes = dict[Key, str | None]
"""New values of state rows; None deletes."""


class Outbox:
    """The file and its mirror. `durable` syncs each commit; without it a power cut may lose what was committed last."""

    meta: dict[str, Any]
    slots: dict[int, SlotBook]
    intents: list[Intent]

    def __init__(
        self, path: Path | str, dispenser_id: str, *, durable: bool = True, randomness: random.Random | None = None
    ) -> None:
        self.dispenser_id = dispenser_id
        self._path, self._durable, self._randomness = path, durable, randomness
        beside = None if str(path) == ":memory:" else Path(path)
        self.reserve = Reserve(beside and beside.with_suffix(".reserve"))
        self._mark = Mark(beside.with_suffix(".mark") if beside and durable else None)
        self._unsure = False
        try:
            self._open()
        except OutboxDamagedError:
            raise
        except OutboxError:
            # On a full disk not even the index of the write-ahead log can be made.
            if not self.reserve.give_up():
                raise
            self._open()

    # ------------------------------------------------------------ opening

    def _open(self) -> None:
        try:
            self._db = self._connect()
            self._db.execute("PRAGMA busy_timeout=5000")
            # EXTRA is FULL that also syncs the directory: the journal of the very first transaction must not come back.
            self._db.execute(f"PRAGMA synchronous={'EXTRA' if self._durable else 'OFF'}")
            self._db.execute("PRAGMA journal_mode=WAL")
            found = self._db.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if found != "ok":
                raise OutboxDamagedError(f"outbox {self._path}: {found}")
            self._db.executescript(SCHEMA)
            self._load()
        except OutboxError:
            self._db.close()
            raise
        except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
            with suppress(AttributeError):
                self._db.close()
            raise at_opening(error, self._path) from error

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(str(self._path), isolation_level=None, check_same_thread=False)

    def _load(self) -> None:
        self._rows: dict[Key, str] = {}
        self._sums: dict[Key, int] = {}
        for kind, name, value in self._db.execute("SELECT * FROM state"):
            self._rows[kind, name], self._sums[kind, name] = value, row_sum(kind, name, value)
        self._sum = sum(self._sums.values())
        sealed = self._db.execute("SELECT number, digest FROM seal").fetchall()
        if not sealed and not self._rows and self._db.execute("SELECT count(*) FROM facts").fetchone() == (0,):
            self._begin_new()
            return
        if len(sealed) != 1:
            raise OutboxDamagedError(f"outbox {self._path}: {len(sealed)} seals: expected 1")
        self._seal = Seal(*sealed[0])
        self._mirror()
        self._check_chain()
        if Seal.of(self._seal.number, self._sum, self.last_seq, self.last_digest) != self._seal:
            raise OutboxDamagedError(f"outbox {self._path}: books, intents and orders do not give the stored seal")
        self._mark.compare(self._seal)
        if self.meta["dispenser_id"] != self.dispenser_id:
            found = self.meta["dispenser_id"]
            raise OutboxError(f"outbox belongs to dispenser_id {found!r}: expected {self.dispenser_id!r}")

    def _begin_new(self) -> None:
        stream_id = self._new_stream_id()
        self.meta, self.slots, self.intents = {}, {}, []
        self.last_seq, self.last_digest = 0, first_digest(self.dispenser_id, stream_id)
        self._seal = Seal(0, b"")
        self._mark.compare(self._seal)
        self._commit(_meta_rows({"stream_id": stream_id, "dispenser_id": self.dispenser_id}))

    def _mirror(self) -> None:
        rows = {kind: {n: v for (k, n), v in self._rows.items() if k == kind} for kind in ("meta", "slot", "intent")}
        self.meta = {name: from_json(value) for name, value in rows["meta"].items()}
        self.slots = {int(name): SlotBook.from_json(value) for name, value in rows["slot"].items()}
        self.intents = [Intent.from_json(value) for value in rows["intent"].values()]

    def _check_chain(self) -> None:
        """Compute the chain of all facts again: one flipped byte shows."""
        self.last_seq, self.last_digest = self._given_up()
        for seq, line, digest in self._db.execute("SELECT seq, line, digest FROM facts ORDER BY seq"):
            if seq != self.last_seq + 1 or next_digest(self.last_digest, line) != digest:
                raise OutboxDamagedError(f"fact {seq}: its bytes do not give the stored digest")
            self.last_seq, self.last_digest = seq, digest

    def _new_stream_id(self) -> str:
        if self._randomness is not None:
            return f"{self._randomness.getrandbits(128):032x}"
        return secrets.token_hex(16)

    def recover(self) -> None:
        """After a failure of the disk: open the file anew and find what was committed; raises OutboxError while unsure.

        What is found is written to the file itself once more: a disk that failed to sync has perhaps forgotten it since.
        """
        self._unsure = True
        with suppress(sqlite3.Error):
            self._db.close()
        self._open()
        try:
            (busy, _, _) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            raise OutboxError(f"outbox: {error}") from error
        if busy:
            raise OutboxError("outbox: somebody else reads it, so it cannot be written back")
        self._unsure = False

    # ------------------------------------------------------------ what is known

    @property
    def stream_id(self) -> str:
        """The id of the current stream."""
        stream_id: str = self.meta["stream_id"]
        return stream_id

    @property
    def commits(self) -> int:
        """The number of the last commit: as long as it is the same, nothing has changed."""
        return self._seal.number

    @property
    def unsure(self) -> bool:
        """Whether it is unknown if the last commit happened: nothing is recorded before `recover` has found out."""
        return self._unsure

    @property
    def acked_through(self) -> int:
        """The last fact that the server has committed, as far as the machine knows."""
        return int(self.meta.get("acked_through", 0))

    @property
    def pending(self) -> int:
        """Facts that the server has not acknowledged."""
        return self.last_seq - self.acked_through

    def _given_up(self) -> tuple[int, bytes]:
        """The last fact that was given up, and its digest; the beginning of the stream where none was."""
        through, digest = self.meta.get("given_up_through", 0), self.meta.get("given_up_digest")
        if digest is None:
            return 0, first_digest(self.meta["dispenser_id"], self.stream_id)
        return through, bytes.fromhex(digest)

    def digest(self, seq: int) -> bytes:
        """Return the digest of a kept fact, or of the one before them; raises OutboxError for one that was pruned."""
        if seq == self.last_seq:
            return self.last_digest
        given_up, digest = self._given_up()
        if seq == given_up:
            return digest
        rows = self._read("SELECT digest FROM facts WHERE seq = ?", seq)
        if not rows:
            raise OutboxError(f"fact {seq}: not kept any more")
        found: bytes = rows[0][0]
        return found

    def batch(self, first_seq: int, facts_max: int) -> tuple[bytes, list[bytes]]:
        """Return the digest before `first_seq`, and the lines of one batch beginning there.

        Raises OutboxDamagedError where they are not what was kept, OutboxError where they are not kept any more.
        """
        query = "SELECT seq, line, digest FROM facts WHERE seq >= ? ORDER BY seq LIMIT ?"
        rows = self._read(query, first_seq - 1, facts_max + 1)
        before = rows.pop(0)[2] if rows and rows[0][0] < first_seq else self.digest(first_seq - 1)
        digest = before
        for seq, line, stored in rows:
            digest = next_digest(digest, line)
            if digest != stored:
                raise OutboxDamagedError(f"fact {seq}: its bytes do not give the stored digest")
        return before, cut((line for _, line, _ in rows), facts_max)

    def lines_after(self, seq: int) -> Iterator[bytes]:
        """Yield all kept lines after a fact."""
        yield from (line for (line,) in self._read("SELECT line FROM facts WHERE seq > ? ORDER BY seq", seq))

    def _read(self, query: str, *arguments: object) -> list[Any]:
        try:
            return self._db.execute(query, arguments).fetchall()
        except sqlite3.Error as error:
            raise OutboxError(f"outbox: {error}") from error

    def oldest_kept(self) -> int:
        """Return the first fact that is kept, with the digest before it; one past the last when none is."""
        return self._given_up()[0] + 1

    def order(self, order_id: str) -> tuple[str, str | None, str] | None:
        """Return (kind, outcome or None while it runs, detail) of an order that was begun."""
        row = self._rows.get(("order", order_id))
        return None if row is None else tuple(from_json(row))

    def open_orders(self) -> list[tuple[str, str]]:
        """Return (order_id, kind) of orders that were begun and have no answer."""
        orders = ((name, from_json(value)) for (kind, name), value in self._rows.items() if kind == "order")
        return [(name, kind) for name, (kind, outcome, _) in orders if outcome is None]

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
        changes = _meta_rows(meta or {})
        changes |= {("slot", str(slot)): book.to_json() for slot, book in (slots or {}).items()}
        if begin is not None:
            changes["intent", str(begin.board_sequence)] = begin.to_json()
        if end is not None:
            changes["intent", str(end)] = None
        if order is not None:
            changes["order", order[0]] = _text(order[1:])
        self._commit(changes, [encode_fact(fact) for fact in facts])

    def _commit(
        self,
        changes: Changes,
        lines: Sequence[bytes] = (),
        statements: Sequence[tuple[str, tuple[object, ...]]] = (),
        after: tuple[int, bytes] | None = None,
    ) -> None:
        """Commit lines, changes and statements under the next seal, the lines `after` the chain's end if no other is given.

        Raises OutboxError, and then nothing has happened.
        """
        if self._unsure:
            raise OutboxError("outbox: unsure whether the last commit happened")
        seq, digest = after or (self.last_seq, self.last_digest)
        chained = []
        for line in lines:
            seq, digest = seq + 1, next_digest(digest, line)
            chained.append((seq, line, digest))
        rows, sums = self._rows, self._sums
        changes = {key: value for key, value in changes.items() if rows.get(key) != value}
        if not changes and not chained and not statements:
            return
        new_sums = {key: 0 if value is None else row_sum(*key, value) for key, value in changes.items()}
        total = self._sum + sum(new - sums.get(key, 0) for key, new in new_sums.items())
        seal = Seal.of(self._seal.number + 1, total, seq, digest)
        try:
            self._write(changes, chained, seal, statements)
        except sqlite3.Error as error:
            self._look_up(seal, error)
            return
        self._sum, self._seal = total, seal
        self.last_seq, self.last_digest = seq, digest
        self._mirror_changes(changes, new_sums)
        self._mark.write(seal)

    def _write(
        self,
        changes: Changes,
        chained: list[tuple[int, bytes, bytes]],
        seal: Seal,
        statements: Sequence[tuple[str, tuple[object, ...]]],
    ) -> None:
        """Do it in one transaction, or none of it; raises sqlite3.Error."""
        execute = self._db.execute
        execute("BEGIN IMMEDIATE")
        try:
            for fact in chained:
                execute("INSERT INTO facts VALUES (?, ?, ?)", fact)
            for key, value in changes.items():
                if value is None:
                    execute("DELETE FROM state WHERE kind = ? AND name = ?", key)
                else:
                    execute("INSERT OR REPLACE INTO state VALUES (?, ?, ?)", (*key, value))
            execute("INSERT OR REPLACE INTO seal VALUES (1, ?, ?)", (seal.number, seal.digest))
            for statement, arguments in statements:
                execute(statement, arguments)
            execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                execute("ROLLBACK")
            raise

    def _mirror_changes(self, changes: Changes, sums: Mapping[Key, int]) -> None:
        for key, value in changes.items():
            kind, name = key
            if kind == "intent":
                self.intents = [intent for intent in self.intents if str(intent.board_sequence) != name]
            if value is None:
                self._rows.pop(key, None)
                self._sums.pop(key, None)
                continue
            self._rows[key], self._sums[key] = value, sums[key]
            if kind == "meta":
                self.meta[name] = from_json(value)
            elif kind == "slot":
                self.slots[int(name)] = SlotBook.from_json(value)
            elif kind == "intent":
                self.intents.append(Intent.from_json(value))

    def _look_up(self, seal: Seal, error: sqlite3.Error) -> None:
        """Find out whether a commit that failed happened after all; raises OutboxError where it did not, or nobody knows."""
        # A full disk leaves no doubt: the commit's last page was not written.
        if code_of(error) not in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY}:
            self.recover()
            if self._seal == seal:
                return
        raise OutboxError(f"outbox: {error}") from error

    def acknowledge(self, through_seq: int, epoch: int, server_at_ms: int) -> None:
        """Note the server's cursor; facts acknowledged KEPT_FACT_DAYS ago by the server's clock are given up, once a day.

        The machine's own clock decides nothing here: it may jump by years.
        """
        day, before = server_at_ms // DAY_MS, self.meta.get("acked_day")
        meta: dict[str, Any] = {"acked_through": through_seq, "epoch": epoch}
        if day == before:
            self.record(meta=meta)
            return
        days = [known for known in self.meta.get("acked_days", []) if known[0] < day]
        days += [] if before is None or before > day else [[before, self.acked_through]]
        old = [seq for then, seq in days if then <= day - KEPT_FACT_DAYS and seq <= through_seq]
        meta |= {"acked_day": day, "acked_days": [[then, seq] for then, seq in days if then > day - KEPT_FACT_DAYS]}
        if not old or old[-1] <= self._given_up()[0]:
            self.record(meta=meta)
            return
        meta |= {"given_up_through": old[-1], "given_up_digest": self.digest(old[-1]).hex()}
        self._commit(_meta_rows(meta), statements=[("DELETE FROM facts WHERE seq <= ?", (old[-1],))])

    def begin_stream(self) -> None:
        """Begin a new stream; the facts of the former one are kept aside."""
        stream_id = self._new_stream_id()
        meta = BEGINS | {"stream_id": stream_id}
        aside = "INSERT OR REPLACE INTO former_facts SELECT ?, seq, line FROM facts"
        statements: list[tuple[str, tuple[object, ...]]] = [(aside, (self.stream_id,)), ("DELETE FROM facts", ())]
        self._commit(_meta_rows(meta), (), statements, after=(0, first_digest(self.dispenser_id, stream_id)))

    def close(self) -> None:
        """Close the file."""
        self._mark.close()
        self._db.close()


def _meta_rows(meta: Mapping[str, Any]) -> Changes:
    return {("meta", name): _text(value) for name, value in meta.items()}


def _text(value: Any) -> str:
    return to_json(value).decode()


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
        try:
            path.rename(aside)
            for beside in (Path(f"{path}-wal"), Path(f"{path}-shm"), path.with_suffix(".mark")):
                if beside.exists():
                    beside.rename(f"{aside}{beside.name.removeprefix(path.stem)}")
        except OSError as refused:
            raise OutboxError(f"{error}; it cannot be set aside: {refused.strerror}") from refused
        return Outbox(path, dispenser_id, durable=durable, randomness=randomness), f"{error}; kept as {aside.name}"
