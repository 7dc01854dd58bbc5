"""Writes what a transaction of ingest gathered, in as few statements as there are tables."""

from dataclasses import dataclass, field
from datetime import datetime

from fleet_server.database import Connection
from fleet_server.devices import arrivals, outgoing_store
from fleet_server.devices.machines import Cursor, FactRow
from fleet_server.faults.store import FaultChange, record
from fleet_server.ingest.effects import Consequences
from fleet_server.ledger.booking import COUNT_DUE, book_entries
from fleet_server.ledger.operations import bind_waiting
from fleet_server.ledger.store import close_doors, open_doors
from fleet_server.ledger.telling import tell_books
from protocol.topics import Channel

STREAM_REPLACED = "STREAM_REPLACED"


@dataclass
class Gathered:
    """What is to be written, in the order of arrival. Everything carries its own moment: a transaction may stay open."""

    facts: list[FactRow] = field(default_factory=list)
    dead: list[tuple[str, bytes, str, datetime]] = field(default_factory=list)
    faults: list[FaultChange] = field(default_factory=list)
    effects: Consequences = field(default_factory=Consequences)
    began: dict[tuple[str, int], datetime] = field(default_factory=dict)
    moved: dict[tuple[str, int], tuple[Cursor, datetime]] = field(default_factory=dict)
    replaced: list[tuple[str, str, datetime]] = field(default_factory=list)

    def begin(self, cursor: Cursor, *, replaces: bool, now: datetime) -> None:
        """Note that a stream begins; where it replaces another, the machine's stock is to be counted."""
        self.began[cursor.dispenser_id, cursor.stream_no] = now
        if not replaces:
            return
        self.replaced.append((cursor.dispenser_id, cursor.stream_id, now))
        for code in (STREAM_REPLACED, COUNT_DUE):
            self.faults.append(
                FaultChange(cursor.dispenser_id, code, opened=True, at=now, detail="a new card or outbox")
            )


def write(connection: Connection, gathered: Gathered, now: datetime) -> None:
    """Write it. Facts come before the ledger: a slot that is folded again reads them."""
    effects = gathered.effects
    arrivals.keep_dead_letters(connection, gathered.dead)
    cursors = [
        (cursor, gathered.began.get(key, received_at), received_at)
        for key, (cursor, received_at) in gathered.moved.items()
    ]
    arrivals.write_facts(connection, gathered.facts, cursors)
    open_doors(connection, effects.doors_opened)
    close_doors(connection, effects.doors_closed)
    entries = effects.entries
    told = {dispenser_id for dispenser_id, _, _ in gathered.replaced}
    for key, bound in bind_waiting(connection, effects.doors_opened).items():
        entries[key] += bound
        told.add(key[0])
    findings = book_entries(connection, entries, now)
    # The broker retains the desired state, but a broker may be wiped, and then a new card would learn it from nobody.
    outgoing_store.tell_again(connection, Channel.DESIRED, effects.desired_known)
    outgoing_store.answer(connection, effects.answers)
    for dispenser_id, stream_id, at in gathered.replaced:
        outgoing_store.orders_unknown(connection, dispenser_id, stream_id, at)
    record(connection, [*gathered.faults, *effects.faults, *findings])
    tell_books(connection, sorted(told), now)
