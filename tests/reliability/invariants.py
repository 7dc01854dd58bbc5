"""The six promises, checked after every fault against what the machines themselves hold: their outbox and their coils.

Nothing here asks the code that is under test: facts are compared byte by byte between a machine's own file and the
server's table, stock lot by lot between the coils of its board and the ledger.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import text

from fleet_server.database import Connection, Database, DatabaseError
from fleet_server.ledger.audit import audit
from protocol.codec import first_digest, next_digest


@dataclass(frozen=True)
class Stream:
    """A stream as its machine's outbox holds it."""

    stream_id: str
    lines: dict[int, bytes]
    acked_through: int
    last_seq: int


@dataclass(frozen=True)
class Witness:
    """What one machine knows of itself. `coils` are its packs by slot, lots front first; None where nobody can say."""

    dispenser_id: str
    outbox: Path
    coils: Callable[[], dict[int, list[str]]] | None = None
    unlocked: Callable[[], int] | None = None
    """How often its lock was opened."""

    def stream(self) -> Stream:
        """Read the outbox as it is on disk, while the agent may be writing it."""
        with closing(sqlite3.connect(f"file:{self.outbox}?mode=ro", uri=True, timeout=20)) as db:
            meta = {
                key: json.loads(value) for key, value in db.execute("SELECT name, value FROM state WHERE kind = 'meta'")
            }
            lines = {seq: bytes(line) for seq, line in db.execute("SELECT seq, line FROM facts ORDER BY seq")}
        return Stream(meta["stream_id"], lines, int(meta.get("acked_through", 0)), max(lines, default=0))


@dataclass
class Findings:
    """What was broken, each line with the promise that it breaks."""

    broken: list[str] = field(default_factory=list)

    def add(self, promise: str, found: str) -> None:
        self.broken.append(f"{promise}: {found}")


def check(database_url: str, witnesses: Sequence[Witness], note: str = "") -> None:
    """Check I1 to I5 of these machines, and the audit of everything; `note` (seed, what was done) stands in the failure."""
    findings = Findings()
    database = Database(database_url)
    with database.begin() as connection:
        report = audit(connection)
        for difference in report.differences:
            findings.add("I3" if difference.check == "seq contiguous" else "I1a, I2", str(difference))
    with database.begin() as connection:
        for witness in witnesses:
            _facts(connection, witness, findings)
            _stock(connection, witness, findings)
            _orders(connection, witness, findings)
    database.close()
    assert not findings.broken, f"{note}\n" + "\n".join(findings.broken[:40])


def _facts(connection: Connection, witness: Witness, findings: Findings) -> None:
    """I3 and I4: the server holds 1 to its cursor without a gap, the bytes are the machine's, and no ack was a lie."""
    who, own = witness.dispenser_id, witness.stream()
    row = connection.execute(
        text("SELECT stream_no, through_seq, digest FROM streams WHERE dispenser_id = :d AND stream_id = :s"),
        {"d": who, "s": own.stream_id},
    ).first()
    if row is None:
        if own.acked_through:
            findings.add("I4", f"{who}: acknowledged through {own.acked_through}, and the server has no such stream")
        return
    kept = {
        seq: bytes(line)
        for seq, line in connection.execute(
            # Not beyond the cursor as it was read: a machine may be telling something meanwhile.
            text("SELECT seq, line FROM facts WHERE dispenser_id = :d AND stream_no = :n AND seq <= :through"),
            {"d": who, "n": row.stream_no, "through": row.through_seq},
        )
    }
    if sorted(kept) != list(range(1, row.through_seq + 1)):
        findings.add("I3", f"{who}: the server holds {len(kept)} facts, cursor at {row.through_seq}")
    if own.acked_through > row.through_seq:
        findings.add("I4", f"{who}: acknowledged through {own.acked_through}, the server is at {row.through_seq}")
    differing = [seq for seq, line in kept.items() if own.lines.get(seq, line) != line]
    if differing:
        findings.add("I3", f"{who}: facts {differing[:5]} have other bytes than on the machine")
    digest = first_digest(who, own.stream_id)
    for seq in sorted(kept):
        digest = next_digest(digest, kept[seq])
    if digest != bytes(row.digest):
        findings.add("I3", f"{who}: the server's chain does not give its own digest at {row.through_seq}")


def _stock(connection: Connection, witness: Witness, findings: Findings) -> None:
    """I1 b and c: nothing here happens unseen by the machine, so coils and ledger are equal, lot by lot."""
    if witness.coils is None:
        return
    coils = {slot: coil for slot, coil in witness.coils().items() if coil}
    ledger = {slot: queue for slot, queue in ledger_of(connection, witness.dispenser_id).items() if queue}
    if coils != ledger:
        slots = sorted(slot for slot in {*coils, *ledger} if coils.get(slot) != ledger.get(slot))
        counts = [(slot, len(coils.get(slot, [])), len(ledger.get(slot, []))) for slot in slots]
        findings.add("I1b, I1c", f"{witness.dispenser_id}: (slot, coil, ledger) {counts}")


def ledger_of(connection: Connection, dispenser_id: str) -> dict[int, list[str]]:
    """The server's book of each slot, lots front first; packs owed count as a lot of their own."""
    rows = connection.execute(text("SELECT slot, book FROM slot_books WHERE dispenser_id = :d"), {"d": dispenser_id})
    return {
        row.slot: [lot for _, lot, packs in row.book["queue"] for _ in range(packs)]
        + ["owed"] * sum(packs for *_, packs in row.book["owed"])
        for row in rows
    }


def _orders(connection: Connection, witness: Witness, findings: Findings) -> None:
    """I5: each order has at most one answer, was never done after its life, and the lock agrees with the answers."""
    who = witness.dispenser_id
    # In this order: the answer is committed before the lock opens, so what is read later holds every answer.
    opened = 0 if witness.unlocked is None else witness.unlocked()
    told = [json.loads(line) for line in witness.stream().lines.values() if b"order_result" in line]
    results = _results(connection, who)
    orders = {
        row.key: row
        for row in connection.execute(
            text("SELECT key, payload, expires_at FROM outgoing WHERE dispenser_id = :d AND channel = 'orders'"),
            {"d": who},
        )
    }
    done = [result for result in results if result["outcome"] == "done"]
    seen = [result["order_id"] for result in done]
    if len(seen) != len(set(seen)):
        findings.add("I5", f"{who}: orders were done more than once: {seen}")
    for result in done:
        order = orders.get(result["order_id"])
        if order is not None and result["at_ms"] > order.expires_at.timestamp() * 1000:
            findings.add("I5", f"{who}: {order.payload['kind']} was done after its time to live")
    # A kill between answer and lock may leave a lock shut, never the other way.
    unlocked = {result["order_id"] for result in [*results, *told] if result["outcome"] == "done"}
    unlocked = {
        order_id for order_id in unlocked if order_id in orders and orders[order_id].payload["kind"] == "unlock"
    }
    if opened > len(unlocked):
        findings.add("I5", f"{who}: the lock opened {opened} times on {len(unlocked)} orders done")


def _results(connection: Connection, dispenser_id: str) -> list[dict[str, Any]]:
    query = text("SELECT line FROM facts WHERE dispenser_id = :d AND kind = 'order_result' ORDER BY stream_no, seq")
    return [json.loads(bytes(line)) for line in connection.execute(query, {"d": dispenser_id}).scalars()]


# ---------------------------------------------------------------- I6


def backlog(database_url: str, witnesses: Sequence[Witness]) -> dict[str, int]:
    """How many facts of each machine's present stream the server has not got."""
    database = Database(database_url)
    try:
        with database.begin() as connection:
            query = text("SELECT through_seq FROM streams WHERE dispenser_id = :d AND stream_id = :s")
            missing = {}
            for witness in witnesses:
                own = witness.stream()
                found = connection.execute(query, {"d": witness.dispenser_id, "s": own.stream_id}).scalar() or 0
                missing[witness.dispenser_id] = own.last_seq - int(found)
            return missing
    finally:
        database.close()


def await_caught_up(database_url: str, witnesses: Sequence[Witness], note: str = "") -> float:
    """I6: everything that the machines held when the fault was healed is with the server in time; returns seconds.

    The machines must be told to do nothing more meanwhile. The time is 30 s and one more for each hundred facts.
    """
    began_s = time.monotonic()
    missing: dict[str, int] = {}
    limit_s, is_measured = 60.0, False
    while time.monotonic() - began_s < limit_s:
        try:
            missing = backlog(database_url, witnesses)
        except DatabaseError:
            missing = {"database": -1}
        else:
            if not is_measured:
                limit_s, is_measured = 30 + sum(missing.values()) / 100, True
            streams = [witness.stream() for witness in witnesses]
            if not any(missing.values()) and all(own.acked_through == own.last_seq for own in streams):
                return time.monotonic() - began_s
        time.sleep(0.1)
    raise AssertionError(f"I6: not caught up in {limit_s:.0f} s, missing {missing}; {note}")


def lines_of(database_url: str, dispenser_id: str) -> Iterator[tuple[str, int, bytes]]:
    """Yield (stream_id, seq, line) of everything that the server holds of one machine."""
    database = Database(database_url)
    with database.begin() as connection:
        query = text("""
            SELECT s.stream_id, f.seq, f.line FROM facts f JOIN streams s USING (dispenser_id, stream_no)
            WHERE f.dispenser_id = :d ORDER BY f.stream_no, f.seq""")
        rows = [(row.stream_id, row.seq, bytes(row.line)) for row in connection.execute(query, {"d": dispenser_id})]
    database.close()
    yield from rows
