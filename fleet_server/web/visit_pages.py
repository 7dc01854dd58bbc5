"""The pages of a restocker's day: work orders, and one visit after the other, on a phone."""

import uuid
from typing import Any, Final, Literal

from fastapi import APIRouter, Request, Response

from fleet_server.auth.service import Person
from fleet_server.database import Connection
from fleet_server.errors import InputError
from fleet_server.ledger import depot, reading
from fleet_server.planning.planner import NEAR_EXPIRY
from fleet_server.web import keeping, views
from fleet_server.web.api import own_order, own_visit
from fleet_server.web.context import Fields, Now, Parts, SignedIn, Transaction
from fleet_server.web.pages import go, page, product_names
from fleet_server.workorders import service as workorders
from fleet_server.workorders import store as workorders_store
from fleet_server.workorders.states import OPEN_ORDERS, OPEN_STOPS

router = APIRouter()
NAMESPACE: Final = uuid.UUID("6b0b2f57-4c1e-4d0b-9d53-1d2f6f3c0a11")


# ---------------------------------------------------------------- work orders


@router.get("/work-orders")
def work_orders(request: Request, person: SignedIn, connection: Transaction) -> Response:
    orders = [r for r in workorders_store.read_orders(connection) if person.depot_id in {None, r["depot_id"]}]
    # What is still to be done comes first.
    orders.sort(key=lambda order: order["state"] not in OPEN_ORDERS)
    stops = workorders_store.count_stops(connection, [order["id"] for order in orders])
    return page(
        request, "work_orders.html", person, orders=orders, stops=stops, kept=keeping.kept_here(connection, person)
    )


@router.get("/work-orders/{work_order_id}")
def work_order(work_order_id: str, request: Request, person: SignedIn, connection: Transaction) -> Response:
    order = own_order(connection, work_order_id, person)
    van = depot.van_stock(connection, workorders.van_of(work_order_id))
    lots = {(line.product, line.lot): line for line in depot.depot_stock(connection, order["depot_id"])}
    left = sum(stop["state"] in OPEN_STOPS for stop in order["stops"])
    product = product_names(request, connection)
    kept = _kept(connection, person, order)
    return page(
        request, "work_order.html", person, order=order, van=van, lots=lots, left=left, product=product, kept=kept
    )


def _kept(connection: Connection, person: Person, order: dict[str, Any]) -> dict[str, Any]:
    moves = {kind: _operation_id(order["id"], kind) for kind in ("pick", "return")}
    return keeping.kept_of(connection, person, order, moves)


@router.post("/work-orders/{work_order_id}/pick")
def pick(work_order_id: str, form: Fields, person: SignedIn, parts: Parts, now: Now) -> Response:
    with parts.database.begin() as connection:
        order = own_order(connection, work_order_id, person)
        lines = []
        for stop in order["stops"]:
            for item in stop["picks"]:
                field = f"pick-{stop['visit_id']}-{item['slot']}-{item['lot']}"
                packs = _packs(field, form.get(field, str(item["planned"])))
                line = workorders.PickLine(stop["dispenser_id"], item["slot"], item["product"], item["lot"], packs)
                lines.append(line)
        operation_id = _operation_id(work_order_id, "pick")
        workorders.pick(connection, work_order_id, operation_id, lines, person.actor, now)
    return go(f"/work-orders/{work_order_id}")


@router.post("/work-orders/{work_order_id}/return")
def give_back(work_order_id: str, form: Fields, person: SignedIn, parts: Parts, now: Now) -> Response:
    with parts.database.begin() as connection:
        own_order(connection, work_order_id, person)
        lines = []
        for item in depot.van_stock(connection, workorders.van_of(work_order_id)):
            field = f"return-{item.product}-{item.lot}"
            lines.append(
                depot.StockLine(item.product, item.lot, _packs(field, form.get(field, str(max(0, item.units)))))
            )
        operation_id = _operation_id(work_order_id, "return")
        workorders.give_back(connection, work_order_id, operation_id, lines, person.actor, now)
    return go(f"/work-orders/{work_order_id}")


def _packs(field: str, value: Any) -> int:
    text = str(value).strip()
    if not text.isdecimal() or int(text) > workorders.ENTRY_PACKS_MAX:
        raise InputError(field, text, f"a whole number from 0 to {workorders.ENTRY_PACKS_MAX}")
    return int(text)


def _operation_id(*parts: object) -> str:
    """The same form sent twice is the same operation."""
    return uuid.uuid5(NAMESPACE, "/".join(str(part) for part in parts)).hex


# ---------------------------------------------------------------- one visit


@router.get("/visits/{visit_id}")
def visit(
    visit_id: str, request: Request, person: SignedIn, connection: Transaction, now: Now, *, closing: bool = False
) -> Response:
    stop = own_visit(connection, visit_id, person, lock=False)
    order = workorders.get(connection, stop["work_order_id"])
    mine = next(item for item in order["stops"] if item["visit_id"] == stop["visit_id"])
    entries = reading.entries_of_visit(connection, stop["visit_id"])
    item = views.detail(connection, stop["dispenser_id"], now)
    today = now.date()
    due_out = [
        (slot, run, "expired" if run.expires_on <= today else "near_expiry")
        for slot in item.slots
        for run in slot.queue
        if run.expires_on is not None and run.expires_on <= today + NEAR_EXPIRY
    ]
    return page(
        request,
        "visit.html",
        person,
        stop=mine,
        order=order,
        item=item,
        counts=[entry for entry in entries if entry.kind == "count"],
        moves=[entry for entry in entries if entry.kind != "count"],
        due_out=due_out,
        door=reading.door_state(connection, stop["dispenser_id"]),
        product=product_names(request, connection),
        closing=closing,
        nonce=uuid.uuid4().hex,
        kept=_kept(connection, person, order),
    )


@router.get("/visits/{visit_id}/door")
def door(visit_id: str, request: Request, person: SignedIn, connection: Transaction) -> Response:
    stop = own_visit(connection, visit_id, person, lock=False)
    return page(request, "door.html", person, stop=stop, door=reading.door_state(connection, stop["dispenser_id"]))


@router.post("/visits/{visit_id}/{step}")
def visit_step(
    visit_id: str, step: str, request: Request, form: Fields, person: SignedIn, parts: Parts, now: Now
) -> Response:
    waits = False
    with parts.database.begin() as connection:
        stop = own_visit(connection, visit_id, person)
        match step:
            case "arrive":
                workorders.arrive(connection, stop, now)
            case "unlock":
                workorders.unlock(connection, stop, now)
            case "repaired":
                workorders.repaired(connection, stop, _packs("slot", form.get("slot", "")), now)
            case "count":
                _enter(connection, stop, _counts(connection, visit_id, form, now), person, now)
            case "refill":
                _enter(connection, stop, _refills(connection, visit_id, form, now), person, now)
            case "close" if workorders.awaits_door(connection, stop):
                waits = True
            case "close":
                workorders.close(connection, stop, now)
            case "skip":
                workorders.skip(connection, stop, form.get("reason", ""), now, _cause(form.get("cause", "other")))
            case _:
                raise InputError("step", step, "arrive, unlock, repaired, count, refill, close or skip")
    if step in {"unlock", "repaired"} and parts.ingest is not None:
        parts.ingest.flush()
    return _after(request, stop, step, waits=waits)


def _after(request: Request, stop: dict[str, Any], step: str, *, waits: bool) -> Response:
    """Show what comes next; a page that waits for the machine asks again and again, and goes on as a whole."""
    asks = "hx-request" in request.headers
    if waits:
        return Response(status_code=204) if asks else go(f"/visits/{stop['visit_id']}?closing=1")
    path = f"/work-orders/{stop['work_order_id']}" if step in {"close", "skip"} else f"/visits/{stop['visit_id']}"
    return Response(status_code=204, headers={"hx-redirect": path}) if asks else go(path)


def _cause(word: str) -> Literal["blocked", "missing", "other"]:
    match word:
        case "blocked" | "missing" | "other":
            return word
        case _:
            raise InputError("cause", word, "blocked, missing or other")


def _enter(
    connection: Connection, stop: dict[str, Any], entries: list[workorders.Entered], person: Person, now: Any
) -> None:
    """Book all of them, or none; raises InputError."""
    results = workorders.enter(connection, stop, entries, person.actor, now)
    refused = [detail for _, verdict, detail in results if verdict in {"refused", "conflicting"}]
    if refused:
        raise InputError("entries", len(refused), "; ".join(refused[:3]))


def _session(form: dict[str, str]) -> str | None:
    code = form.get("session", "").strip()
    if code and not (code.isdecimal() and len(code) == 6):  # noqa: PLR2004 - six digits, as the machine shows them
        raise InputError("session", code, "the six digits that the machine shows")
    return code or None


def _counts(connection: Connection, visit_id: str, form: dict[str, str], now: Any) -> list[workorders.Entered]:
    step = len(reading.entries_of_visit(connection, visit_id))
    session = _session(form)
    entries: list[workorders.Entered] = []
    for name, value in sorted(form.items()):
        if name.startswith("count-") and value.strip():
            slot = _packs("slot", name.removeprefix("count-"))
            operation_id = _operation_id(visit_id, form.get("nonce"), "count", slot)
            counted = _packs(name, value)
            entry = workorders.Entered(operation_id, step + len(entries), session, now, "count", slot, counted=counted)
            entries.append(entry)
    return entries


def _refills(connection: Connection, visit_id: str, form: dict[str, str], now: Any) -> list[workorders.Entered]:
    before = reading.entries_of_visit(connection, visit_id)
    session = _session(form) or next((entry.session for entry in before if entry.session), None)
    entries: list[workorders.Entered] = []
    for name, value in sorted(form.items()):
        kind, _, rest = name.partition("-")
        if kind not in {"refill", "expired", "near_expiry"} or not value.strip() or _packs(name, value) == 0:
            continue
        slot_text, _, lot = rest.partition("-")
        slot, packs = _packs("slot", slot_text), _packs(name, value)
        operation_id = _operation_id(visit_id, form.get("nonce"), kind, slot, lot)
        entries.append(
            workorders.Entered(
                operation_id, len(before) + len(entries), session, now, "refill" if kind == "refill" else "remove", slot,
                lot=lot, packs=packs, reason=kind if kind != "refill" else None,
            )
        )  # fmt: skip
    # What is removed makes room for what is filled in.
    return sorted(entries, key=lambda entry: entry.kind == "refill")
