"""Carrying out a work order: pick, arrive, unlock, enter, close, return."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final, Literal

from fleet_server.database import Connection
from fleet_server.devices import fleet, outgoing
from fleet_server.errors import ConflictError, InputError, NotFoundError
from fleet_server.faults.store import FaultChange, record
from fleet_server.ledger import depot, lots, reading
from fleet_server.ledger.fold import UNKNOWN
from fleet_server.ledger.movements import Verdict
from fleet_server.ledger.operations import SlotOperation, book
from fleet_server.workorders import store
from fleet_server.workorders.states import OPEN_ORDERS, OrderState, StopState, change_order, change_stop

UNLOCK_LIVES_S: Final = 120
CLEAR_LIVES_S: Final = 3_600
ACCESS_BLOCKED: Final = "ACCESS_BLOCKED"
THEFT: Final = "THEFT"
ENTRY_PACKS_MAX: Final = 1_000
REMOVAL_REASONS: Final = ("expired", "near_expiry", "damaged", "damp", "heat", "recalled", "stolen", "returned")


@dataclass(frozen=True, slots=True)
class PlannedPick:
    """Packs of one lot meant for one slot."""

    slot: int
    product: str
    lot: str
    planned: int


@dataclass(frozen=True, slots=True)
class PlannedStop:
    """One visit of a tour, with the reasons for it."""

    dispenser_id: str
    reasons: list[dict[str, Any]]
    picks: list[PlannedPick]


@dataclass(frozen=True, slots=True)
class PickLine:
    """What was really picked for one slot."""

    dispenser_id: str
    slot: int
    product: str
    lot: str
    packs: int


@dataclass(frozen=True, slots=True)
class Entered:
    """One entry of a phone, as it came; `enter` checks it."""

    operation_id: str
    index: int
    session: str | None
    entered_at: datetime
    kind: Literal["count", "refill", "remove"]
    slot: int
    counted: int | None = None
    product: str | None = None
    lot: str | None = None
    packs: int | None = None
    reason: str | None = None


def van_of(work_order_id: str) -> str:
    """Name the account of a work order's van."""
    return f"van/{work_order_id}"


def create(
    connection: Connection,
    order_id: str,
    plan_id: str,
    depot_id: str,
    day: date,
    tour: Sequence[PlannedStop],
    now: datetime,
) -> None:
    """Make a work order of a released tour; one that exists stays as it is."""
    order = {
        "id": order_id, "plan_id": plan_id, "depot_id": depot_id, "day": day, "state": OrderState.RELEASED,
        "created_at": now, "changed_at": now,
    }  # fmt: skip
    rows = [
        {
            "visit_id": f"{order_id}-{position:02d}",
            "work_order_id": order_id,
            "position": position,
            "dispenser_id": stop.dispenser_id,
            "state": StopState.PLANNED,
            "reasons": stop.reasons,
            "changed_at": now,
            "picks": [
                {"slot": pick.slot, "product": pick.product, "lot": pick.lot, "planned": pick.planned}
                for pick in stop.picks
            ],
        }
        for position, stop in enumerate(tour, 1)
    ]
    store.write_order(connection, order, rows)


def get(connection: Connection, order_id: str) -> dict[str, Any]:
    """Return a work order with its stops and picks; raises NotFoundError."""
    return _order(connection, order_id, lock=False) | {"stops": store.read_stops(connection, order_id)}


def _order(connection: Connection, order_id: str, *, lock: bool = True) -> dict[str, Any]:
    """Return a work order without its stops, locked for whoever changes it; raises NotFoundError."""
    order = store.read_order(connection, order_id, lock=lock)
    if order is None:
        raise NotFoundError("work_order_id", order_id, "the id of a work order")
    return order


def visit(connection: Connection, visit_id: str, *, lock: bool = True) -> dict[str, Any]:
    """Return a visit, locked for whoever changes it; raises NotFoundError."""
    stop = store.read_stop(connection, visit_id, lock=lock)
    if stop is None:
        raise NotFoundError("visit_id", visit_id, "the id of a visit")
    return stop


def pick(
    connection: Connection, order_id: str, operation_id: str, lines: Sequence[PickLine], actor: str, now: datetime
) -> Verdict:
    """Move what was picked from the depot into the van; a short pick is recorded as what it is."""
    order = _order(connection, order_id)
    stock = [depot.StockLine(line.product, line.lot, line.packs) for line in lines]
    verdict = depot.pick(connection, operation_id, order["depot_id"], van_of(order_id), stock, actor, now)
    if verdict is Verdict.BOOKED:
        note_picked(connection, order, lines, now)
    return verdict


def note_picked(connection: Connection, order: dict[str, Any], lines: Sequence[PickLine], now: datetime) -> None:
    """Note on a released work order what was picked for it; raises InputError or ConflictError."""
    order_id = order["id"]
    visits = {stop["dispenser_id"]: stop["visit_id"] for stop in store.read_stops(connection, order_id)}
    picked: Counter[tuple[str, int, str, str]] = Counter()
    for line in lines:
        if line.dispenser_id not in visits:
            raise InputError("dispenser_id", line.dispenser_id, f"a machine of work order {order_id}")
        picked[visits[line.dispenser_id], line.slot, line.product, line.lot] += line.packs
    # What was planned and is in no line was not picked at all; what was not planned replaces something.
    store.set_picked(connection, list(visits.values()), picked)
    store.set_order_state(connection, order_id, change_order(order["state"], "pick"), now)


def arrive(connection: Connection, stop: dict[str, Any], now: datetime) -> dict[str, Any]:
    """Note that the restocker stands at the machine. `stop` here and below is what `visit` returned."""
    _check_open(stop)
    state = change_stop(stop["state"], "arrive")
    store.set_stop(connection, stop["visit_id"], now, state=state)
    # Somebody stands before the machine: it is there, and it can be reached.
    record(
        connection, [FaultChange(stop["dispenser_id"], code, opened=False, at=now) for code in (ACCESS_BLOCKED, THEFT)]
    )
    return stop | {"state": state}


def unlock(connection: Connection, stop: dict[str, Any], now: datetime) -> str:
    """Order the machine to open its lock; returns the order's id."""
    _check_there(stop)
    order_id = outgoing.order(connection, stop["dispenser_id"], "unlock", lives_s=UNLOCK_LIVES_S, now=now)
    store.set_stop(connection, stop["visit_id"], now, unlock_order_id=order_id)
    return order_id


def repaired(connection: Connection, stop: dict[str, Any], slot: int, now: datetime) -> str:
    """Tell the machine that somebody has freed a slot, which ends its jam; returns the order's id."""
    _check_there(stop)
    slots = fleet.planogram(connection, [stop["dispenser_id"]]).get(stop["dispenser_id"], [])
    if slot not in {plan.slot for plan in slots}:
        raise InputError("slot", slot, f"a slot of {stop['dispenser_id']}")
    return outgoing.order(connection, stop["dispenser_id"], "clear_jam", lives_s=CLEAR_LIVES_S, now=now, slot=slot)


def _check_there(stop: dict[str, Any]) -> None:
    _check_open(stop)
    if stop["state"] != StopState.ARRIVED:
        raise ConflictError("state", stop["state"], "a visit at which somebody has arrived")


def _check_open(stop: dict[str, Any]) -> None:
    """An old visit must open no door: raise ConflictError where the work order has ended."""
    if stop["order_state"] not in OPEN_ORDERS:
        raise ConflictError("work_order", stop["order_state"], f"one of {', '.join(sorted(OPEN_ORDERS))}")


def enter(
    connection: Connection, stop: dict[str, Any], entries: Sequence[Entered], actor: str, now: datetime
) -> list[tuple[str, str, str]]:
    """Book what a phone entered, each entry by itself: (operation_id, verdict, detail). It may come days late.

    Of the stop no more need be known than visit_id, work_order_id and dispenser_id.
    """
    known_slots = {
        plan.slot: plan for plan in fleet.planogram(connection, [stop["dispenser_id"]]).get(stop["dispenser_id"], [])
    }
    known_lots = {(lot.product, lot.lot) for lot in lots.list_lots(connection)}
    good: list[SlotOperation] = []
    refusals: dict[int, str] = {}
    for place, entry in enumerate(entries):
        try:
            good.append(_checked(entry, stop, known_slots, known_lots, actor))
        except InputError as error:
            refusals[place] = str(error)
    bookings = iter(book(connection, good, now))
    results = []
    for place, entry in enumerate(entries):
        if place in refusals:
            results.append((entry.operation_id, "refused", refusals[place]))
        else:
            booking = next(bookings)
            results.append((entry.operation_id, str(booking.verdict), booking.detail))
    return results


def _checked(
    entry: Entered, stop: dict[str, Any], slots: dict[int, Any], known: set[tuple[str, str]], actor: str
) -> SlotOperation:
    plan = slots.get(entry.slot)
    if plan is None:
        raise InputError("slot", entry.slot, f"a slot of {stop['dispenser_id']}: {', '.join(map(str, slots))}")
    if entry.index < 0:
        raise InputError("index", entry.index, "0 or more: the place of the entry within its visit")
    # Packs that nobody could name can only be taken out.
    nameless = entry.kind == "remove" and entry.lot == UNKNOWN
    product = entry.product or (UNKNOWN if nameless else plan.product)
    if entry.kind == "count":
        _check_packs("counted", entry.counted)
    else:
        _check_packs("packs", entry.packs)
        if not nameless and (product, entry.lot) not in known:
            raise InputError("lot", f"{product} {entry.lot}", "a registered lot with its expiry date")
    if entry.kind == "remove" and entry.reason not in REMOVAL_REASONS:
        raise InputError("reason", entry.reason, f"one of {', '.join(REMOVAL_REASONS)}")
    if entry.kind != "count" and entry.packs == 0:
        raise InputError("packs", 0, "1 or more; leave the entry out where nothing moved")
    return SlotOperation(
        operation_id=entry.operation_id,
        dispenser_id=stop["dispenser_id"],
        visit_id=stop["visit_id"],
        slot=entry.slot,
        kind=entry.kind,
        session=entry.session,
        step=entry.index,
        entered_at=entry.entered_at,
        actor=actor,
        van=van_of(stop["work_order_id"]),
        product=product if entry.kind != "count" else None,
        lot=entry.lot if entry.kind != "count" else None,
        packs=entry.packs if entry.kind != "count" else None,
        counted=entry.counted if entry.kind == "count" else None,
        reason=entry.reason if entry.kind == "remove" else None,
    )


def _check_packs(field: str, packs: int | None) -> None:
    if packs is None or not 0 <= packs <= ENTRY_PACKS_MAX:
        raise InputError(field, packs, f"0 to {ENTRY_PACKS_MAX}")


def awaits_door(connection: Connection, stop: dict[str, Any]) -> bool:
    """Tell whether the machine says that its door is open, and would tell if it were closed: it has a link.

    What a machine without a link told last may be long over: there the word of whoever stands before it counts.
    """
    dispenser_id = stop["dispenser_id"]
    here = fleet.presence(connection, [dispenser_id]).get(dispenser_id)
    return reading.door_state(connection, dispenser_id).open and (here is None or here.online)


def close(connection: Connection, stop: dict[str, Any], now: datetime) -> dict[str, Any]:
    """Close a visit; raises ConflictError while the door is open, or its closing is still on its way from the machine."""
    if awaits_door(connection, stop):
        raise ConflictError("door", "open", "a closed door, and the machine's word of it: ask again in some seconds")
    state = change_stop(stop["state"], "close")
    store.set_stop(connection, stop["visit_id"], now, state=state)
    return stop | {"state": state}


def skip(
    connection: Connection,
    stop: dict[str, Any],
    reason: str,
    now: datetime,
    cause: Literal["blocked", "missing", "other"] = "other",
) -> dict[str, Any]:
    """Leave a visit out, with the reason: nobody gets in (`blocked`), or no machine is there (`missing`)."""
    if cause != "other":
        code = ACCESS_BLOCKED if cause == "blocked" else THEFT
        detail = f"visit {stop['visit_id']}: {reason}"[:200]
        change = FaultChange(stop["dispenser_id"], code, opened=True, at=now, detail=detail)
        record(connection, [change])
    if not reason.strip():
        raise InputError("reason", reason, "words that say why the visit is left out")
    state = change_stop(stop["state"], "skip")
    store.set_stop(connection, stop["visit_id"], now, state=state, skipped_because=reason[:200])
    return stop | {"state": state}


def give_back(
    connection: Connection,
    order_id: str,
    operation_id: str,
    lines: Sequence[depot.StockLine],
    actor: str,
    now: datetime,
) -> Verdict:
    """Return what is left in the van to the depot, which closes the work order."""
    order = _order(connection, order_id)
    verdict = depot.give_back(connection, operation_id, order["depot_id"], van_of(order_id), lines, actor, now)
    if verdict is Verdict.BOOKED:
        store.set_order_state(connection, order_id, change_order(order["state"], "return"), now)
    return verdict


def cancel(connection: Connection, order_id: str, now: datetime) -> None:
    """Call a work order off that nobody has picked: its machines may be planned again."""
    order = _order(connection, order_id)
    store.set_order_state(connection, order_id, change_order(order["state"], "cancel"), now)
