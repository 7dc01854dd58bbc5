"""Tells machines what the ledger knows: their desired state with its lots, and the books of their slots."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from fleet_server.database import Connection
from fleet_server.devices import outgoing, outgoing_store
from fleet_server.devices.store import cursors, list_dispensers, planogram
from fleet_server.ledger import lot_store, store
from fleet_server.ledger.fold import SlotBook
from protocol.messages import Limits, OpeningHours
from protocol.topics import Channel

FORGOTTEN_AFTER = timedelta(days=400)
"""A lot that expired so long ago is in no machine; naming it would only fill the message."""


def tell_desired(
    connection: Connection, dispenser_ids: Sequence[str] | None, now: datetime, *, again: bool = False
) -> list[str]:
    """Tell machines their desired state where it has changed, or `again` whatever they know; returns those told."""
    plans = planogram(connection, dispenser_ids)
    lots = [lot for lot in lot_store.read_lots(connection) if lot[2] > (now - FORGOTTEN_AFTER).date()]
    latest = outgoing_store.latest_payloads(connection, list(plans), Channel.DESIRED)
    told: dict[str, dict[str, Any]] = {}
    for dispenser in list_dispensers(connection):
        plan = plans.get(dispenser.id)
        if plan is None:
            continue
        products = {slot.product for slot in plan}
        payload: dict[str, Any] = {
            "planogram": [slot.model_dump() for slot in plan],
            "lots": [
                {"product": product, "lot": lot, "expires_on": expires_on.isoformat(), "blocked": blocked is not None}
                for product, lot, expires_on, blocked in lots
                if product in products
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


def tell_books(connection: Connection, dispenser_ids: Sequence[str], now: datetime) -> None:
    """Tell machines the books of all their slots, as of the last fact of their newest stream.

    The caller holds their locks, so cursor and books belong together. A machine without a stream is told nothing yet.
    """
    if not dispenser_ids:
        return
    newest = {cursor.dispenser_id: cursor for cursor in cursors(connection, dispenser_ids)}
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
            queue = [{"lot": run.lot, "packs": run.packs} for run in book.queue]
            claims.append({"slot": slot, "queue": queue})
        told[dispenser_id] = {"stream_id": cursor.stream_id, "as_of_seq": cursor.through_seq, "slots": claims}
    outgoing.tell(connection, Channel.BOOKS, told, now)
