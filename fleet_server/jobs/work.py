"""The jobs themselves: each takes a connection and the time at which it was due, and may run again without harm."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from fleet_server.auth import store as auth
from fleet_server.clock import LOCAL, system_now
from fleet_server.database import Connection
from fleet_server.devices import fleet, outgoing
from fleet_server.faults.store import NO_SLOT, FaultChange, open_faults, record
from fleet_server.jobs import store
from fleet_server.jobs.finding import watch_stock, watch_theft
from fleet_server.ledger import operations, reading
from fleet_server.ledger.booking import COUNT_DUE
from fleet_server.ledger.telling import tell_desired
from fleet_server.planning import service as planning
from fleet_server.planning.planner import COUNT_EVERY_DAYS

OFFLINE_AFTER: Final = timedelta(minutes=30)
STREAM_ENDED_AFTER: Final = timedelta(hours=1)
"""What a replaced card had sent is here so long after we heard of the new one, or never."""
JOB_RUNS_KEPT: Final = timedelta(days=400)
SESSIONS_KEPT: Final = timedelta(days=1)
COUNT_EVERY: Final = timedelta(days=COUNT_EVERY_DAYS)
SETTLED_BY_COUNT: Final = (COUNT_DUE, "STREAM_REPLACED", "STREAM_GAP")
"""Faults of a whole machine that end when all its slots have been counted; those of one slot end with its count."""


def plan(connection: Connection, due_at: datetime) -> None:
    """Propose the day's tours for every depot, and tell which machines are short of something."""
    depots = sorted({dispenser.depot_id for dispenser in fleet.list_dispensers(connection)})
    watch_stock(connection, [planning.make_plan(connection, depot_id, due_at) for depot_id in depots], due_at)


def release(connection: Connection, due_at: datetime) -> None:
    """Release what is proposed for today and nobody has released, where the district has decided that this may happen."""
    if not planning.auto_release(connection):
        return
    today = due_at.astimezone(LOCAL).date()
    for row in planning.list_plans(connection):
        if row["state"] == "proposed" and row["day"] == today:
            planning.release(connection, row["id"], due_at)


def watch_presence(connection: Connection, due_at: datetime) -> None:
    """Open NET_LOSS for a machine that has been away for half an hour: what it has is unknown, not empty."""
    changes = []
    for dispenser_id, online, changed_at in store.presence_to_note(connection, "NET_LOSS", due_at - OFFLINE_AFTER):
        detail = "" if online else f"no connection since {changed_at.astimezone(LOCAL):%m-%d %H:%M}"
        changes.append(FaultChange(dispenser_id, "NET_LOSS", opened=not online, at=due_at, detail=detail))
    record(connection, changes)


def watch_expiry(connection: Connection, due_at: datetime) -> None:
    """Open EXPIRED_IN_SLOT where a slot holds an expired lot, clear it where none is left, and tell machines of lots."""
    today = due_at.astimezone(LOCAL).date()
    changes = []
    for (dispenser_id, slot), stock in reading.slot_stock(connection).items():
        expired = [run.lot for run in stock.queue if run.expires_on is not None and run.expires_on <= today]
        detail = f"lot {', '.join(expired)}" if expired else ""
        changes.append(FaultChange(dispenser_id, "EXPIRED_IN_SLOT", bool(expired), due_at, slot, detail))
    # Those that open together and those that end together: two statements instead of one for each slot.
    record(connection, sorted(changes, key=lambda change: change.opened))
    tell_desired(connection, None, due_at)


def book_lost_doors(connection: Connection, due_at: datetime) -> None:
    """Book what was entered at doors of which only a lost card knew: else it would wait for ever."""
    operations.book_lost_doors(connection, due_at - STREAM_ENDED_AFTER, due_at)


def watch_counts(connection: Connection, due_at: datetime) -> None:
    """Ask for the monthly count of machines, and no longer where every slot has been counted since it was asked for."""
    counted = planning.counted_at(connection)
    changes = [
        FaultChange(fault.dispenser_id, fault.code, opened=False, at=due_at)
        for fault in open_faults(connection)
        if fault.slot == NO_SLOT and fault.code in SETTLED_BY_COUNT
        if (at := counted.get(fault.dispenser_id)) is not None and at >= fault.opened_at
    ]
    for dispenser_id, at in counted.items():
        if at is None or due_at - at >= COUNT_EVERY:
            detail = "never counted" if at is None else f"last counted {at.astimezone(LOCAL):%Y-%m-%d}"
            changes.append(FaultChange(dispenser_id, COUNT_DUE, opened=True, at=due_at, detail=detail))
    record(connection, changes)


def watch(connection: Connection, due_at: datetime) -> None:
    """Look who is away, and answer orders that nobody answered in time."""
    watch_presence(connection, due_at)
    watch_theft(connection, due_at)
    outgoing.expire(connection, due_at)


@dataclass(frozen=True)
class Kept:
    """How long to keep what expires. Facts, movements and operations never do."""

    vitals: timedelta = timedelta(days=90)
    dead_letters: timedelta = timedelta(days=90)


def forget(connection: Connection, due_at: datetime, kept: Kept = Kept()) -> None:
    """Drop readings, unreadable messages and job runs of long ago, and sessions that ended."""
    store.forget(connection, "vitals_history", "hour", due_at - kept.vitals)
    store.forget(connection, "dead_letters", "received_at", due_at - kept.dead_letters)
    store.forget(connection, "job_runs", "due_at", due_at - JOB_RUNS_KEPT)
    # Sessions live by the wall clock, whatever the fleet's clock says.
    auth.forget(connection, system_now() - SESSIONS_KEPT)
