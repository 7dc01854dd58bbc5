"""The REST API for what phones and desks kept: after a restore they offer it again."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field

from fleet_server.auth.service import Role
from fleet_server.database import Connection
from fleet_server.errors import ForbiddenError, InputError
from fleet_server.ledger import depot
from fleet_server.ledger.telling import tell_desired
from fleet_server.recovery import kept
from fleet_server.seed import DEPOT
from fleet_server.web import models as m
from fleet_server.web.api import entered, in_utc, record_new_lot
from fleet_server.web.context import Now, SignedIn, Transaction
from fleet_server.workorders import service as workorders

router = APIRouter(prefix="/api/v1", responses={"4XX": {"model": m.Problem, "description": "problem document"}})

WorkOrderId = Annotated[str, Field(pattern=r"^[!-~]{1,80}$")]
ORDER = ("receipt", "pick", "return")
RECEIVERS = frozenset({Role.DISPATCHER, Role.ADMINISTRATOR})


class KeptVisit(m.Model):
    """The entries of one visit, as they were posted, with what the server may no longer know of it."""

    visit_id: WorkOrderId
    work_order_id: WorkOrderId
    dispenser_id: Annotated[str, Field(max_length=32)]
    operations: Annotated[list[m.Operation], Field(min_length=1, max_length=200)]


class KeptReceipt(m.Receipt):
    kind: Literal["receipt"]
    entered_at: datetime


class KeptPick(m.Pick):
    kind: Literal["pick"]
    work_order_id: WorkOrderId
    entered_at: datetime


class KeptReturn(m.Return):
    kind: Literal["return"]
    work_order_id: WorkOrderId
    entered_at: datetime


KeptMove = Annotated[KeptReceipt | KeptPick | KeptReturn, Field(discriminator="kind")]


class KeptOperations(m.Model):
    depot: list[KeptMove] = Field(default_factory=list, max_length=50)
    visits: list[KeptVisit] = Field(default_factory=list, max_length=50)


@router.post("/recovery/operations", tags=["recovery"])
def take_back(body: KeptOperations, person: SignedIn, connection: Transaction, now: Now) -> m.Results:
    """Take operations of the last 30 days again, after this server was restored from a backup.

    A client offers them once the `epoch` that signing in answers has grown. Each is booked once by its `operation_id`
    (`booked`, `waiting` for its door session, `repeated`, `conflicting`), also where visit, work order or pick are no longer
    known; what is `refused` is to be kept and offered again. Refused as a whole (409) by a server that was not restored.
    """
    kept.refuse_unless_restored(connection, now)
    who = kept.Person(person.actor, person.depot_id)
    outcomes: list[kept.Outcome] = []
    # Receipts first: they name lots that others need. A return closes the work order that its pick is noted on.
    for move in sorted(body.depot, key=lambda move: ORDER.index(move.kind)):

        def take_move(move: KeptReceipt | KeptPick | KeptReturn = move) -> list[kept.Outcome]:
            if isinstance(move, KeptReceipt):
                if person.role not in RECEIVERS:
                    raise ForbiddenError("role", str(person.role), f"one of {', '.join(sorted(RECEIVERS))}")
                for line in move.lines:
                    record_new_lot(connection, line, now)
            verdict = kept.take_move(connection, _move(move, person.depot_id or DEPOT), who, now)
            return [(move.operation_id, str(verdict), "")]

        outcomes += _each(connection, [move.operation_id], take_move)
    for visit in sorted(body.visits, key=lambda visit: visit.dispenser_id):

        def take_visit(visit: KeptVisit = visit) -> list[kept.Outcome]:
            entries = [entered(operation) for operation in visit.operations]
            known = kept.KeptVisit(visit.visit_id, visit.work_order_id, visit.dispenser_id, entries)
            return kept.take_visit(connection, known, who, now)

        outcomes += _each(connection, [operation.operation_id for operation in visit.operations], take_visit)
    tell_desired(connection, None, now)
    return m.Results(results=[m.Result(operation_id=o, verdict=v, detail=d) for o, v, d in outcomes])


def _each(connection: Connection, ids: list[str], take: Callable[[], list[kept.Outcome]]) -> list[kept.Outcome]:
    """Take one thing by itself: what is refused leaves nothing behind, and the others go on."""
    try:
        with connection.begin_nested():
            return take()
    except InputError as error:
        return kept.refused(ids, error)


def _move(move: Any, depot_id: str) -> kept.KeptMove:
    lines = [depot.StockLine(line.product, line.lot, line.packs) for line in move.lines]
    picked = [workorders.PickLine(**line.model_dump()) for line in move.lines] if move.kind == "pick" else []
    order = None if move.kind == "receipt" else move.work_order_id
    at = in_utc("entered_at", move.entered_at)
    return kept.KeptMove(move.operation_id, move.kind, at, depot_id, order, lines, picked)
