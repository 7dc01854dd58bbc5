"""Faults that only the server can find: from reports that do not come, stock, dates, and what visits did not see. Jobs as in `work`."""

from datetime import datetime, timedelta
from typing import Final

from fleet_server.database import Connection
from fleet_server.faults.store import FaultChange, OpenFault, open_faults, record
from fleet_server.jobs import store
from fleet_server.planning import service as planning

REPORTS_WITHIN: Final = timedelta(days=30)
REPORTS_FOR_AT_LEAST: Final = timedelta(days=7)
ON_TIME_SHARE: Final = 0.8
CARRIED_OFF_SIGNS: Final = ("VANDALISM", "POWER_LOSS", "NET_LOSS")
CARRIED_OFF_WITHIN: Final = timedelta(hours=3)
"""A shock, a loss of mains and a loss of network so near to each other are a theft."""
VISITS_WITHIN: Final = timedelta(days=2)


def _open(connection: Connection, code: str) -> dict[str, OpenFault]:
    return {fault.dispenser_id: fault for fault in open_faults(connection) if fault.code == code}


def _set(connection: Connection, code: str, found: dict[str, str], at: datetime) -> None:
    """Let a fault of whole machines be open exactly where it was found, with these details."""
    over = [FaultChange(name, code, opened=False, at=at) for name in _open(connection, code) if name not in found]
    begun = [FaultChange(name, code, opened=True, at=at, detail=detail[:200]) for name, detail in found.items()]
    record(connection, [*over, *begun])


def watch_reports(connection: Connection, due_at: datetime) -> None:
    """COMM_RELIABILITY_LOW: less than 80 % of the hours of the last 30 days have a reading."""
    since = due_at - REPORTS_WITHIN
    found = {}
    for dispenser_id, hours, began_at in store.hours_reported(connection, since, due_at):
        known_for = due_at - max(since, began_at)
        share = hours / max(1, int(known_for / timedelta(hours=1)))
        if known_for >= REPORTS_FOR_AT_LEAST and share < ON_TIME_SHARE:
            found[dispenser_id] = f"{share:.0%} of the hours of {known_for.days} days"
    _set(connection, "COMM_RELIABILITY_LOW", found, due_at)


def watch_stock(connection: Connection, plans: list[planning.MadePlan], due_at: datetime) -> None:
    """LOW_STOCK: a product of a machine that was ever loaded is below its minimum, as the day's plans saw it."""
    found: dict[str, str] = {}
    for plan in plans:
        found |= planning.short_of(plan)
    _set(connection, "LOW_STOCK", found, due_at)


def watch_theft(connection: Connection, due_at: datetime) -> None:
    """THEFT: a shock, then neither mains nor network, within hours. It ends when somebody has stood before the machine."""
    found = store.machines_with_all(connection, CARRIED_OFF_SIGNS, CARRIED_OFF_WITHIN)
    detail = "shock, then no mains and no network"
    record(connection, [FaultChange(name, "THEFT", opened=True, at=due_at, detail=detail) for name in found])


def watch_doors(connection: Connection, due_at: datetime) -> None:
    """DOOR_SWITCH_FAULT: a visit was finished at a machine that reported all the while, and its door never moved."""
    open_now = _open(connection, "DOOR_SWITCH_FAULT")
    moved = store.doors_last_opened(connection)
    changes = [
        FaultChange(name, "DOOR_SWITCH_FAULT", opened=False, at=due_at)
        for name, fault in open_now.items()
        if (at := moved.get(name)) is not None and at > fault.opened_at
    ]
    for dispenser_id, visit_id, closed_at in store.visits_without_door(connection, due_at - VISITS_WITHIN, due_at):
        if not ((at := moved.get(dispenser_id)) is not None and at > closed_at):
            detail = f"visit {visit_id}: the door was never seen open"
            changes.append(FaultChange(dispenser_id, "DOOR_SWITCH_FAULT", opened=True, at=due_at, detail=detail))
    record(connection, changes)
