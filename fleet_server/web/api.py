"""The REST API under /api/v1."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from fleet_server.auth import service as auth
from fleet_server.clock import system_now
from fleet_server.devices.store import server_epoch
from fleet_server.errors import ConflictError, ForbiddenError, InputError
from fleet_server.jobs import clockwork
from fleet_server.ledger import depot, lots, reading
from fleet_server.ledger.audit import audit
from fleet_server.ledger.movements import Verdict
from fleet_server.ledger.telling import tell_desired
from fleet_server.planning import service as planning
from fleet_server.seed import DEPOT
from fleet_server.web import models as m
from fleet_server.web import views
from fleet_server.web.context import Now, Parts, SignedIn, Transaction
from fleet_server.workorders import service as workorders
from fleet_server.workorders import store as workorders_store

router = APIRouter(prefix="/api/v1", responses={"4XX": {"model": m.Problem, "description": "problem document"}})


def sign_in_person(parts: Parts, name: str, password: str, address: str) -> auth.Person:
    """Sign somebody in. A refused attempt is counted although the request fails: each step commits by itself."""
    wall = system_now()
    with parts.database.begin() as connection:
        noted = auth.note_attempt(connection, name, address, wall)
    with parts.database.begin() as connection:
        if auth.verify(connection, name, password):
            return auth.begin(connection, name, noted, wall)
        auth.note_failure(connection, name, wall)
    raise auth.SignInError("user", name, "a user with this password")


@router.post("/sign-in", tags=["session"])
def sign_in(body: m.SignIn, request: Request, parts: Parts) -> m.Session:
    """Get a bearer token. Where `epoch` has grown since the last time, the server was restored: offer again what you kept."""
    address = request.client.host if request.client else "unknown"
    return session_of(parts, sign_in_person(parts, body.user, body.password, address))


def session_of(parts: Parts, person: auth.Person) -> m.Session:
    """Return what somebody who has signed in is told."""
    with parts.database.begin() as connection:
        return m.Session(token=person.token, role=person.role, epoch=server_epoch(connection))


@router.post("/sign-out", tags=["session"])
def sign_out(person: SignedIn, connection: Transaction) -> m.Done:
    """End the session."""
    auth.end(connection, person, system_now())
    return m.Done()


# ---------------------------------------------------------------- dispensers and stock


@router.get("/dispensers", tags=["dispensers"])
def dispensers(connection: Transaction, now: Now) -> m.DispenserList:
    """List all machines with stock, presence and age of the data."""
    return m.DispenserList(items=views.overview(connection, now))


@router.get("/dispensers/{dispenser_id}", tags=["dispensers"])
def dispenser(dispenser_id: str, connection: Transaction, now: Now) -> m.DispenserDetail:
    """Return one machine with its slots, lots, faults and vitals."""
    return views.detail(connection, dispenser_id, now)


@router.get("/slots", tags=["dispensers"])
def slots(
    connection: Transaction, after: str = "", limit: Annotated[int, Query(ge=1, le=1_000)] = 500
) -> m.DispenserSlotsList:
    """Page through what is in the slots of all machines, by dispenser: pass the id of the last one to go on."""
    return m.DispenserSlotsList(items=views.slots(connection, after, limit))


@router.get("/dispensers/{dispenser_id}/facts", tags=["facts"])
def dispenser_facts(
    dispenser_id: str,
    connection: Transaction,
    before_stream: m.StreamNumber | None = None,
    before_seq: m.RowNumber | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> m.FactList:
    """Page through a machine's facts, newest first: pass stream_no and seq of the last one to go on."""
    before = None if before_stream is None or before_seq is None else (before_stream, before_seq)
    return m.FactList(items=views.facts(connection, dispenser_id, before, limit))


@router.get("/dispensers/{dispenser_id}/streams", tags=["facts"])
def dispenser_streams(dispenser_id: str, connection: Transaction) -> m.StreamList:
    """Tell how far the server has each stream of a machine: its last fact and the digest of that, oldest stream first."""
    return m.StreamList(items=views.streams(connection, dispenser_id))


@router.get("/faults", tags=["faults"])
def faults(
    connection: Transaction,
    code: str | None = None,
    dispenser_id: str | None = None,
    before: m.RowNumber | None = None,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
) -> m.PastFaultList:
    """Page through faults, open and ended, newest first: pass the id of the last one to go on."""
    return m.PastFaultList(items=views.past_faults(connection, code, dispenser_id, before, limit))


@router.get("/stock", tags=["stock"])
def stock(
    connection: Transaction,
    account: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000,
) -> m.BalanceList:
    """Return balances that are not zero, of accounts that begin with `account`."""
    rows = reading.balances(connection, account, limit)
    return m.BalanceList(
        items=[m.BalanceItem(account=r.account, product=r.product, lot=r.lot, units=r.units) for r in rows]
    )


@router.get("/ledger/movements", tags=["stock"])
def movements(
    connection: Transaction,
    account: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
) -> m.MovementList:
    """Return the newest movements."""
    names = ("id", "source", "target", "product", "lot", "units", "reason", "actor", "cause", "at", "booked_at")
    rows = reading.movements(connection, account, limit)
    return m.MovementList(items=[m.MovementItem(**{name: getattr(row, name) for name in names}) for row in rows])


@router.get("/ledger/audit", tags=["stock"])
def audited(parts: Parts) -> m.Audit:
    """Recompute every balance twice, from movements and from facts and operations; takes as long as there is history."""
    with parts.database.begin() as connection:
        report = audit(connection)
    counts = {name: getattr(report, name) for name in ("movements", "facts", "operations", "accounts")}
    return m.Audit(**counts, differences=[str(difference) for difference in report.differences])


@router.get("/depot", tags=["depot"])
def depot_stock(person: SignedIn, connection: Transaction) -> m.DepotStock:
    """Return the depot's stock, first expired first."""
    depot_id = person.depot_id or DEPOT
    return m.DepotStock(depot=depot_id, stock=[_lot_stock(line) for line in depot.depot_stock(connection, depot_id)])


def _lot_stock(line: depot.LotStock) -> m.LotStock:
    return m.LotStock(
        product=line.product, lot=line.lot, expires_on=line.expires_on, blocked=line.blocked, units=line.units
    )


@router.post("/depot/receipts", tags=["depot"])
def receive(body: m.Receipt, person: SignedIn, connection: Transaction, now: Now) -> m.Done:
    """Receive goods from the supplier, registering lots that are new."""
    for line in body.lines:
        record_new_lot(connection, line, now)
    lines = [depot.StockLine(line.product, line.lot, line.packs) for line in body.lines]
    verdict = depot.receive(connection, body.operation_id, person.depot_id or DEPOT, lines, person.actor, now)
    tell_desired(connection, None, now)
    return _done(verdict, body.operation_id)


@router.get("/lots", tags=["lots"])
def list_lots(connection: Transaction) -> m.LotList:
    """List all lots."""
    rows = lots.list_lots(connection)
    return m.LotList(
        items=[m.LotState(product=r.product, lot=r.lot, expires_on=r.expires_on, blocked=r.blocked) for r in rows]
    )


@router.post("/lots", tags=["lots"])
def record_lot(body: m.LotItem, connection: Transaction, now: Now) -> m.Done:
    """Register a lot with its expiry."""
    verdict = record_new_lot(connection, body, now)
    tell_desired(connection, None, now)
    return m.Done(verdict=verdict)


@router.post("/lots/block", tags=["lots"])
def block_lot(body: m.LotBlock, connection: Transaction, now: Now) -> m.Done:
    """Block a lot for a reason such as a recall: no machine that knows gives any of it. Without a reason it is freed."""
    lots.block_lot(connection, body.product, body.lot, body.reason)
    tell_desired(connection, None, now)
    return m.Done()


def record_new_lot(connection: Any, item: m.LotItem, now: Any) -> Verdict:
    """Register a lot; raises ConflictError where it is registered with another expiry."""
    verdict = lots.record_lot(connection, item.product, item.lot, item.expires_on, now)
    if verdict is Verdict.CONFLICTING:
        raise ConflictError("expires_on", str(item.expires_on), f"the expiry registered for {item.lot}")
    return verdict


def _done(verdict: Verdict, operation_id: str) -> m.Done:
    if verdict is Verdict.CONFLICTING:
        raise ConflictError("operation_id", operation_id, "a new id: this one was used with other content")
    return m.Done(verdict=verdict)


# ---------------------------------------------------------------- plans and work


@router.get("/plans", tags=["plans"])
def plans(connection: Transaction) -> m.PlanList:
    """List plans, newest first."""
    return m.PlanList(items=[m.PlanItem(**row) for row in planning.list_plans(connection)])


@router.post("/plans", tags=["plans"])
def make_plan(person: SignedIn, connection: Transaction, now: Now) -> m.PlanItem:
    """Make a plan now."""
    made = planning.make_plan(connection, person.depot_id or DEPOT, now)
    return _plan(connection, made.id)


@router.get("/plans/{plan_id}", tags=["plans"])
def plan(plan_id: str, connection: Transaction) -> m.PlanItem:
    """Return one plan."""
    return _plan(connection, plan_id)


def _plan(connection: Any, plan_id: str) -> m.PlanItem:
    row = planning.get_plan(connection, plan_id)
    return m.PlanItem(**{name: row[name] for name in m.PlanItem.model_fields})


@router.post("/plans/{plan_id}/release", tags=["plans"])
def release(plan_id: str, connection: Transaction, now: Now) -> m.Released:
    """Release a plan: its tours become work orders."""
    return m.Released(work_order_ids=planning.release(connection, plan_id, now))


@router.get("/work-orders", tags=["work orders"])
def work_orders(person: SignedIn, connection: Transaction, state: str | None = None) -> m.WorkOrderList:
    """List work orders, newest first."""
    rows = [r for r in workorders_store.read_orders(connection, state) if person.depot_id in {None, r["depot_id"]}]
    return m.WorkOrderList(items=[_work_order(row) for row in rows])


def _work_order(row: dict[str, Any]) -> m.WorkOrderItem:
    return m.WorkOrderItem(**{name: row[name] for name in m.WorkOrderItem.model_fields})


@router.get("/work-orders/{work_order_id}", tags=["work orders"])
def work_order(work_order_id: str, person: SignedIn, connection: Transaction) -> m.WorkOrderDetail:
    """Return one work order with its stops and picks."""
    row = own_order(connection, work_order_id, person)
    stops = [
        m.StopItem(
            **{name: stop[name] for name in m.StopItem.model_fields if name != "picks"},
            picks=[m.PickItem(**{name: pick[name] for name in m.PickItem.model_fields}) for pick in stop["picks"]],
        )
        for stop in row["stops"]
    ]
    return m.WorkOrderDetail(**_work_order(row).model_dump(), stops=stops)


def own_order(connection: Any, work_order_id: str, person: auth.Person) -> dict[str, Any]:
    """Return a work order of the person's own depot."""
    row = workorders.get(connection, work_order_id)
    _own_depot(row["depot_id"], person)
    return row


def own_visit(connection: Any, visit_id: str, person: auth.Person, *, lock: bool = True) -> dict[str, Any]:
    """Return a visit of the person's own depot, locked for whoever changes it."""
    row = workorders.visit(connection, visit_id, lock=lock)
    _own_depot(row["depot_id"], person)
    return row


def _own_depot(depot_id: str, person: auth.Person) -> None:
    if person.depot_id is not None and person.depot_id != depot_id:
        raise ForbiddenError("depot", depot_id, person.depot_id)


@router.post("/work-orders/{work_order_id}/pick", tags=["work orders"])
def pick(work_order_id: str, body: m.Pick, person: SignedIn, connection: Transaction, now: Now) -> m.Done:
    """Book what was picked from the depot into the van."""
    own_order(connection, work_order_id, person)
    lines = [workorders.PickLine(**line.model_dump()) for line in body.lines]
    verdict = workorders.pick(connection, work_order_id, body.operation_id, lines, person.actor, now)
    return _done(verdict, body.operation_id)


@router.post("/work-orders/{work_order_id}/return", tags=["work orders"])
def give_back(work_order_id: str, body: m.Return, person: SignedIn, connection: Transaction, now: Now) -> m.Done:
    """Return what is left in the van; closes the work order."""
    own_order(connection, work_order_id, person)
    lines = [depot.StockLine(**line.model_dump()) for line in body.lines]
    verdict = workorders.give_back(connection, work_order_id, body.operation_id, lines, person.actor, now)
    return _done(verdict, body.operation_id)


def _visit(row: dict[str, Any]) -> m.Visit:
    return m.Visit(visit_id=row["visit_id"], dispenser_id=row["dispenser_id"], state=row["state"])


@router.post("/visits/{visit_id}/arrive", tags=["visits"])
def arrive(visit_id: str, person: SignedIn, connection: Transaction, now: Now) -> m.Visit:
    """Say that you stand at the machine."""
    return _visit(workorders.arrive(connection, own_visit(connection, visit_id, person), now))


@router.post("/visits/{visit_id}/unlock", tags=["visits"])
def unlock(visit_id: str, person: SignedIn, parts: Parts, now: Now) -> m.Unlocked:
    """Order the machine to open; it is sent at once."""
    with parts.database.begin() as connection:
        order_id = workorders.unlock(connection, own_visit(connection, visit_id, person), now)
    if parts.ingest is not None:
        parts.ingest.flush()
    return m.Unlocked(order_id=order_id, messages_sent=parts.ingest.sent if parts.ingest is not None else 0)


@router.post("/visits/{visit_id}/operations", tags=["visits"])
def operations(visit_id: str, body: m.Operations, person: SignedIn, connection: Transaction, now: Now) -> m.Results:
    """Book counts, refills and removals, each by itself; the same operation may be sent again, days late, in any order."""
    stop = own_visit(connection, visit_id, person)
    entries = [entered(item) for item in body.operations]
    results = workorders.enter(connection, stop, entries, person.actor, now)
    return m.Results(results=[m.Result(operation_id=o, verdict=v, detail=d) for o, v, d in results])


def entered(item: m.Operation) -> workorders.Entered:
    """Return an entry as it came; raises InputError for a time that could be any."""
    return workorders.Entered(**item.model_dump() | {"entered_at": in_utc("entered_at", item.entered_at)})


def in_utc(field: str, at: datetime) -> datetime:
    """Return a moment that somebody has given; raises InputError for one without its offset, or outside of the calendar."""
    try:
        if at.tzinfo is not None:
            return at.astimezone(UTC)
    except OverflowError:
        pass
    raise InputError(field, at.isoformat(), "a time with its offset from UTC")


@router.post("/visits/{visit_id}/close", tags=["visits"])
def close(visit_id: str, person: SignedIn, connection: Transaction, now: Now) -> m.Visit:
    """Close a visit; 409 while a machine with a link says that its door is open: ask again, its word may be on its way."""
    return _visit(workorders.close(connection, own_visit(connection, visit_id, person), now))


@router.post("/visits/{visit_id}/skip", tags=["visits"])
def skip(visit_id: str, body: m.Skip, person: SignedIn, connection: Transaction, now: Now) -> m.Visit:
    """Leave a visit out, with the reason."""
    stop = own_visit(connection, visit_id, person)
    return _visit(workorders.skip(connection, stop, body.reason, now, body.cause))


# ---------------------------------------------------------------- the clock


@router.get("/clock", tags=["clock"])
def clock(parts: Parts) -> m.ClockNow:
    """Tell the fleet's time."""
    state = parts.clock.state()
    return m.ClockNow(now=parts.clock.now(), mode=state.mode, speed=state.speed)


@router.post("/clock/advance", tags=["clock"])
def advance(body: m.Advance, parts: Parts) -> m.Advanced:
    """Move the played clock and run the jobs that fall due; refused in production."""
    if parts.ingest is not None and body.after_messages is not None:
        parts.ingest.await_handled(body.after_messages)
    production = parts.settings.production
    ran = clockwork.advance(parts.database, parts.clock, body.to, production=production, jobs=parts.jobs)
    sent = handled = 0
    if parts.ingest is not None:
        parts.ingest.flush()
        sent, handled = parts.ingest.sent, parts.ingest.handled
    return m.Advanced(now=parts.clock.now(), jobs_run=ran, messages_sent=sent, messages_handled=handled)


@router.post("/clock/live", tags=["clock"])
def live(body: m.Live, parts: Parts) -> m.ClockNow:
    """Let the clock run on; refused in production."""
    state = clockwork.go_live(parts.database, parts.clock, body.speed, production=parts.settings.production)
    return m.ClockNow(now=parts.clock.now(), mode=state.mode, speed=state.speed)
