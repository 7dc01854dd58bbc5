"""Tells machines what the ledger knows: their desired state with its lots, and the books of their slots."""

from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta
from typing import Any

from fleet_server.clock import LOCAL
from fleet_server.database import Connection
from fleet_server.devices import outgoing, outgoing_store
from fleet_server.devices.store import list_dispensers, planogram, recent_cursors
from fleet_server.ledger import lot_store, store
from fleet_server.ledger.fold import SlotBook
from protocol.claims import claimable
from protocol.messages import Limits, OpeningHours
from protocol.topics import Channel
from protocol.versions import DESIRED_LOTS_MAX

LotRow = tuple[str, str, date, str | None]
"""(product, lot, expires_on, blocked)."""

FORGOTTEN_AFTER = timedelta(days=400)
"""A lot that expired so long ago is in no machine; naming it would only fill the message."""


def tell_desired(
    connection: Connection, dispenser_ids: Sequence[str] | None, now: datetime, *, again: bool = False
) -> list[str]:
    """Tell machines their desired state where it has changed, or `again` whatever they know; returns those told.

    One transaction at a time, until it ends: of two that each block a lot, the second must see what the first has blocked.
    """
    store.lock_desired(connection)
    plans = planogram(connection, dispenser_ids)
    lots = [lot for lot in lot_store.read_lots(connection) if lot[2] > (now - FORGOTTEN_AFTER).date()]
    latest = outgoing_store.latest_payloads(connection, list(plans), Channel.DESIRED)
    told: dict[str, dict[str, Any]] = {}
    for dispenser in list_dispensers(connection):
        plan = plans.get(dispenser.id)
        if plan is None:
            continue
        named = _named(connection, dispenser.id, {slot.product for slot in plan}, lots, now)
        payload: dict[str, Any] = {
            "planogram": [slot.model_dump() for slot in plan],
            "lots": [
                {"product": product, "lot": lot, "expires_on": expires_on.isoformat(), "blocked": blocked is not None}
                for product, lot, expires_on, blocked in named
            ],
            "limits": Limits().model_dump(),
            "opening_hours": OpeningHours(
                opens_hour=dispenser.opens_hour, closes_hour=dispenser.closes_hour
            ).model_dump(),
        }
        former = latest.get(dispenser.id, {})
        if again or payload != {name: value for name, value in former.items() if name != "version"}:
            told[dispenser.id] = payload
    outgoing.tell(connection, Channel.DESIRED, told, now)
    return list(told)


def _named(
    connection: Connection, dispenser_id: str, products: set[str], lots: Iterable[LotRow], now: datetime
) -> list[LotRow]:
    """Return the lots that a machine is told of. It gives none that it does not know: those that it may give come first.

    Where there are more than a message has room for, what lies in its slots comes before what may be loaded next.
    """
    named = [lot for lot in lots if lot[0] in products]
    if len(named) <= DESIRED_LOTS_MAX:
        return named
    books = store.read_books(connection, dispenser_ids=[dispenser_id])
    held = {(run.product, run.lot) for book, _ in books.values() for run in book.queue}
    today = now.astimezone(LOCAL).date()

    def rank(lot: LotRow) -> tuple[bool, bool, int]:
        product, name, expires_on, blocked = lot
        return (blocked is not None or expires_on <= today, (product, name) not in held, -expires_on.toordinal())

    kept = set(sorted(named, key=rank)[:DESIRED_LOTS_MAX])
    return [lot for lot in named if lot in kept]


def tell_books(connection: Connection, dispenser_ids: Sequence[str], now: datetime) -> None:
    """Tell machines the books of all their slots, as of the last fact of their newest stream.

    The caller holds their locks, so cursor and books belong together. A machine without a stream is told nothing yet.
    """
    if not dispenser_ids:
        return
    newest = {cursor.dispenser_id: cursor for cursor in recent_cursors(connection, dispenser_ids, 1)}
    plans = planogram(connection, dispenser_ids)
    books = store.read_books(connection, dispenser_ids=dispenser_ids)
    stocked: dict[str, set[int]] = {}
    for owner, slot in books:
        stocked.setdefault(owner, set()).add(slot)
    told: dict[str, dict[str, Any]] = {}
    for dispenser_id, cursor in newest.items():
        planned = {plan.slot for plan in plans.get(dispenser_id, [])}
        claims = []
        for slot in sorted(planned | stocked.get(dispenser_id, set())):
            book, _ = books.get((dispenser_id, slot)) or (SlotBook(dispenser_id, slot), None)
            # Lots behind those that a claim can name are not given before the next visit.
            queue = [
                {"lot": lot, "packs": packs} for lot, packs in claimable((run.lot, run.packs) for run in book.queue)
            ]
            claims.append({"slot": slot, "queue": queue})
        told[dispenser_id] = {"stream_id": cursor.stream_id, "as_of_seq": cursor.through_seq, "slots": claims}
    outgoing.tell(connection, Channel.BOOKS, told, now)
