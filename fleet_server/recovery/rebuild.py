"""Computes every projection anew from facts, operations and movements, and says what was not as it should have been.

Facts, operations and movements are truth and stay. Where facts and operations imply other movements than were posted, the
difference is posted too when that is asked for, as a late entry's would be.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from fleet_server.database import Connection
from fleet_server.devices import store as devices
from fleet_server.devices.fleet import list_dispensers
from fleet_server.devices.gap_store import list_gaps
from fleet_server.devices.machines import Cursor
from fleet_server.ledger.movements import DoorSession
from fleet_server.recovery import rebuild_store as store
from fleet_server.recovery.rebuild_depot import rebuild_depots
from fleet_server.recovery.rebuild_slots import rebuild_slots
from protocol.codec import decode_fact, first_digest, next_digest
from protocol.messages import DoorClosed, DoorOpened


@dataclass(frozen=True, slots=True)
class Difference:
    """A row of a projection that was not what it should be; `repaired` tells whether it is now."""

    table: str
    place: str
    words: str
    repaired: bool = True


def rebuild(connection: Connection, now: datetime, *, correct: bool = False) -> list[Difference]:
    """Make every projection anew, machine after machine, while ingest and phones wait for the caller's transaction to end.

    With `correct`, operations whose door session is known are bound, and movements that facts and operations imply are
    posted; without, what of that is missing is only told.
    """
    found: list[Difference] = []
    dispensers = list_dispensers(connection)
    # All at once, before any balance is touched: whoever holds a machine and wants a balance would else wait for us, and we for them.
    devices.lock(connection, [dispenser.id for dispenser in dispensers])
    if correct:
        store.hold_balances(connection)
    for dispenser in dispensers:
        found += _streams(connection, dispenser.id)
        doors, differ = _doors(connection, dispenser.id)
        found += differ
        found += [Difference(*row) for row in rebuild_slots(connection, dispenser.id, doors, now, correct=correct)]
    found += [Difference(*row) for row in rebuild_depots(connection, now, correct=correct)]
    found += _balances(connection)
    return found


def _streams(connection: Connection, dispenser_id: str) -> Iterator[Difference]:
    for stands in devices.cursors(connection, [dispenser_id]):
        place = f"{dispenser_id}/{stands.stream_no}"
        derived, missing = _cursor(connection, stands)
        if missing is not None:
            words = f"fact {missing} is not there, and no gap is noted: only a backup can have it"
            yield Difference("facts", place, words, repaired=False)
        elif derived != stands:
            store.move_cursor(connection, derived._asdict())
            names = [name for name in Cursor._fields if getattr(derived, name) != getattr(stands, name)]
            yield Difference("streams", place, f"{', '.join(names)}: now as of fact {derived.through_seq}")
    for stream_no in store.streams_without_cursor(connection, dispenser_id):
        words = "the cursor is gone, and with it the id of the stream: only a backup can have it"
        yield Difference("streams", f"{dispenser_id}/{stream_no}", words, repaired=False)


def _cursor(connection: Connection, stands: Cursor) -> tuple[Cursor, int | None]:
    """Return where the stored facts end, or the number of the first that is missing."""
    gaps = {g.first_seq: g for g in list_gaps(connection, stands.dispenser_id) if g.stream_no == stands.stream_no}
    through, digest = 0, first_digest(stands.dispenser_id, stands.stream_id)
    last: tuple[Any, Any, Any] = (None, None, None)
    for seq, line, kind, corrected_at in store.lines_of_stream(connection, stands.dispenser_id, stands.stream_no):
        if through + 1 in gaps:
            gap = gaps[through + 1]
            through, digest = gap.last_seq, gap.digest
        if seq != through + 1:
            return stands, through + 1
        through, digest = seq, next_digest(digest, line)
        if kind is not None:
            fact = decode_fact(line)
            last = (corrected_at, fact.boot_id, fact.mono_ms)
    derived = Cursor(stands.dispenser_id, stands.stream_no, stands.stream_id, through, digest, *last)
    return derived, None


def _doors(connection: Connection, dispenser_id: str) -> tuple[list[DoorSession], list[Difference]]:
    derived: list[DoorSession] = []
    still_open: dict[tuple[int, str], list[int]] = defaultdict(list)
    for stored in devices.facts_of_kinds(connection, dispenser_id, ["door_opened", "door_closed"]):
        match decode_fact(stored.line):
            case DoorOpened(session=session):
                still_open[stored.stream_no, session].append(len(derived))
                at = stored.corrected_at
                derived.append(DoorSession(dispenser_id, stored.stream_no, stored.seq, session, at, None, None))
            case DoorClosed(session=session):
                for place in still_open.pop((stored.stream_no, session), []):
                    derived[place] = replace(derived[place], closed_seq=stored.seq, closed_at=stored.corrected_at)
            case _:
                pass
    stands = store.read_doors(connection, dispenser_id)
    if derived == stands:
        return derived, []
    store.replace_doors(connection, dispenser_id, derived)
    return derived, [Difference("door_sessions", dispenser_id, f"{len(derived)} by the facts, {len(stands)} before")]


def _balances(connection: Connection) -> list[Difference]:
    store.hold_balances(connection)
    differing = store.differing_balances(connection)
    store.set_balances(connection, [(key, moved) for key, moved, _ in differing])
    return [
        Difference("balances", " ".join(key), f"{moved} by the movements, {stood} before")
        for key, moved, stood in differing
    ]
