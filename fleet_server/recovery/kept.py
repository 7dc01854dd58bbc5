"""Operations that phones and desks kept, offered again to a restored server: each is booked once, whatever is still known of its visit."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from fleet_server.database import Connection
from fleet_server.devices import fleet
from fleet_server.devices.store import read_state
from fleet_server.errors import ConflictError, ForbiddenError, InputError
from fleet_server.ledger import depot
from fleet_server.ledger.movements import Verdict
from fleet_server.workorders import service as workorders
from fleet_server.workorders import store as workorders_store
from fleet_server.workorders.states import OPEN_ORDERS, OrderState, StopState

KEPT: Final = timedelta(days=30)
"""Phones keep what they have sent for so long; later nobody has anything to offer."""

Outcome = tuple[str, str, str]
"""(operation_id, verdict, detail)."""


@dataclass(frozen=True, slots=True)
class Person:
    """Who offers; `depot_id` limits to one depot."""

    actor: str
    depot_id: str | None


@dataclass(frozen=True, slots=True)
class KeptVisit:
    """What was entered in one visit."""

    visit_id: str
    work_order_id: str
    dispenser_id: str
    entries: Sequence[workorders.Entered]


@dataclass(frozen=True, slots=True)
class KeptMove:
    """A receipt, or the pick or return of a work order."""

    operation_id: str
    kind: Literal["receipt", "pick", "return"]
    entered_at: datetime
    depot_id: str
    work_order_id: str | None
    lines: Sequence[depot.StockLine]
    picked: Sequence[workorders.PickLine] = ()


def take_visit(connection: Connection, kept: KeptVisit, person: Person, now: datetime) -> list[Outcome]:
    """Book a visit's entries; one that is still known is closed by them, one that is not is booked all the same."""
    refuse_unless_restored(connection, now)
    _own_depot(fleet.get_dispenser(connection, kept.dispenser_id).depot_id, person)
    stop: dict[str, Any] = {
        "visit_id": kept.visit_id, "work_order_id": kept.work_order_id, "dispenser_id": kept.dispenser_id,
    }  # fmt: skip
    known = workorders_store.read_stop(connection, kept.visit_id, lock=True)
    if known is not None and any(known[name] != value for name, value in stop.items()):
        raise ConflictError(
            "visit_id", kept.visit_id, f"the visit of {known['dispenser_id']}, {known['work_order_id']}"
        )
    outcomes = workorders.enter(connection, stop, kept.entries, person.actor, now)
    if known is not None and known["state"] in {StopState.PLANNED, StopState.ARRIVED}:
        workorders_store.set_stop(connection, kept.visit_id, now, state=StopState.CLOSED)
    return outcomes


def take_move(connection: Connection, kept: KeptMove, person: Person, now: datetime) -> Verdict:
    """Book a movement at the depot, and note it on its work order where that is still known."""
    refuse_unless_restored(connection, now)
    order = workorders_store.read_order(connection, kept.work_order_id, lock=True) if kept.work_order_id else None
    depot_id = order["depot_id"] if order else kept.depot_id
    _own_depot(depot_id, person)
    van = workorders.van_of(kept.work_order_id or "")
    verdict = depot.take_back(
        connection, kept.operation_id, depot_id, kept.kind, van, kept.lines, person.actor, kept.entered_at, now
    )
    if verdict is not Verdict.BOOKED or order is None:
        return verdict
    if kept.kind == "pick" and order["state"] == OrderState.RELEASED:
        workorders.note_picked(connection, order, kept.picked, now)
    if kept.kind == "return" and order["state"] in OPEN_ORDERS:
        workorders_store.set_order_state(connection, order["id"], OrderState.CLOSED, now)
    return verdict


def refuse_unless_restored(connection: Connection, now: datetime) -> None:
    """Raise ConflictError where nothing can have been forgotten: what is not planned is not to be entered by this door."""
    restored = read_state(connection, "restored")
    if restored is None:
        raise ConflictError("epoch", 1, "a server that was restored from a backup")
    if now > datetime.fromisoformat(restored["restored_at"]) + KEPT:
        raise ConflictError("epoch", restored["epoch"], f"one that began at most {KEPT.days} days ago")


def _own_depot(depot_id: str, person: Person) -> None:
    if person.depot_id not in {None, depot_id}:
        raise ForbiddenError("depot", depot_id, person.depot_id or "")


def refused(operation_ids: Sequence[str], error: InputError) -> list[Outcome]:
    """Say of each operation why it was not taken."""
    return [(operation_id, "refused", str(error)) for operation_id in operation_ids]
