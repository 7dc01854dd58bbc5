"""What both the API and the pages show, gathered from the features."""

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from fleet_server.database import Connection
from fleet_server.devices import fleet
from fleet_server.faults.store import OpenFault, list_faults, open_faults
from fleet_server.ledger import reading
from fleet_server.web import models as m


@dataclass(frozen=True, slots=True)
class _Known:
    """What the features know of some machines, or of all, read once."""

    plans: fleet.Planogram
    stock: dict[tuple[str, int], reading.SlotStock]
    presence: dict[str, fleet.Presence]
    last: dict[str, datetime]
    faults: dict[str, list[OpenFault]]


def _known(connection: Connection, ids: list[str] | None) -> _Known:
    faults: dict[str, list[OpenFault]] = {}
    for fault in open_faults(connection, ids):
        faults.setdefault(fault.dispenser_id, []).append(fault)
    return _Known(
        fleet.planogram(connection, ids),
        reading.slot_stock(connection, ids),
        fleet.presence(connection, ids),
        fleet.last_fact_at(connection, ids),
        faults,
    )


def overview(connection: Connection, now: datetime) -> list[m.DispenserItem]:
    """Return one line for each machine."""
    known = _known(connection, None)
    return [_item(dispenser, known, now) for dispenser in fleet.list_dispensers(connection)]


def _item(dispenser: fleet.Dispenser, known: _Known, now: datetime) -> m.DispenserItem:
    slots, stock = known.plans.get(dispenser.id, []), known.stock
    units = [stock[dispenser.id, plan.slot].units if (dispenser.id, plan.slot) in stock else 0 for plan in slots]
    here, at = known.presence.get(dispenser.id), known.last.get(dispenser.id)
    return m.DispenserItem(
        id=dispenser.id,
        name_zh=dispenser.name_zh,
        name_en=dispenser.name_en,
        street_zh=dispenser.street_zh,
        street_en=dispenser.street_en,
        site_type=dispenser.site_type,
        online=here.online if here else None,
        last_fact_at=at,
        age_s=max(0.0, (now - at).total_seconds()) if at else None,
        stock=sum(units),
        capacity=sum(plan.capacity for plan in slots),
        slots_empty=sum(packs <= 0 for packs in units),
        faults_open=len(known.faults.get(dispenser.id, [])),
    )


def detail(connection: Connection, dispenser_id: str, now: datetime) -> m.DispenserDetail:
    """Return everything known of one machine; raises NotFoundError."""
    dispenser = fleet.get_dispenser(connection, dispenser_id)
    known = _known(connection, [dispenser_id])
    faults = [
        m.FaultItem(code=f.code, slot=f.slot or None, source=f.source, detail=f.detail, opened_at=f.opened_at)
        for f in known.faults.get(dispenser_id, [])
    ]
    return m.DispenserDetail(
        **_item(dispenser, known, now).model_dump(),
        latitude=dispenser.latitude,
        longitude=dispenser.longitude,
        opens_hour=dispenser.opens_hour,
        closes_hour=dispenser.closes_hour,
        note=dispenser.note,
        slots=_slots(dispenser_id, known.plans, known.stock),
        faults=faults,
        vitals=fleet.latest_vitals(connection, dispenser_id),
        door_open=reading.door_state(connection, dispenser_id).open,
    )


def slots(connection: Connection, after: str, limit: int) -> list[m.DispenserSlots]:
    """Return what is in the slots of so many machines after one, by their ids."""
    ids = [dispenser.id for dispenser in fleet.list_dispensers(connection, after, limit)]
    plans, stock = fleet.planogram(connection, ids), reading.slot_stock(connection, ids)
    return [m.DispenserSlots(id=dispenser_id, slots=_slots(dispenser_id, plans, stock)) for dispenser_id in ids]


def _slots(
    dispenser_id: str, plans: fleet.Planogram, stock: dict[tuple[str, int], reading.SlotStock]
) -> list[m.SlotItem]:
    items = []
    for plan in plans.get(dispenser_id, []):
        held = stock.get((dispenser_id, plan.slot)) or reading.SlotStock([], 0, 0)
        queue = [
            m.QueuedLot(
                product=run.product, lot=run.lot, packs=run.packs, expires_on=run.expires_on, blocked=run.blocked
            )
            for run in held.queue
        ]
        items.append(m.SlotItem(**plan.model_dump(), units=held.units, owed=held.owed, queue=queue))
    return items


def past_faults(
    connection: Connection, code: str | None, dispenser_id: str | None, before: int | None, limit: int
) -> list[m.PastFaultItem]:
    """Return faults, newest first, whether they have ended or not."""
    found = list_faults(connection, code=code, dispenser_id=dispenser_id, before=before, limit=limit)
    return [m.PastFaultItem(**asdict(fault) | {"slot": fault.slot or None}) for fault in found]


def streams(connection: Connection, dispenser_id: str) -> list[m.StreamItem]:
    """Return how far the server has each of a machine's streams, oldest first; raises NotFoundError."""
    fleet.get_dispenser(connection, dispenser_id)
    return [
        m.StreamItem(
            stream_no=cursor.stream_no,
            stream_id=cursor.stream_id,
            through_seq=cursor.through_seq,
            digest=cursor.digest.hex(),
        )
        for cursor in fleet.cursors(connection, [dispenser_id])
    ]


def facts(connection: Connection, dispenser_id: str, before: tuple[int, int] | None, limit: int) -> list[m.FactItem]:
    """Return facts of one machine, newest first, as they were sent."""
    return [
        m.FactItem(
            stream_no=fact.stream_no,
            seq=fact.seq,
            kind=fact.kind,
            at=fact.corrected_at,
            received_at=fact.received_at,
            fact=_readable(fact),
            quarantine_reason=fact.quarantine_reason,
        )
        for fact in fleet.facts_page(connection, dispenser_id, before=before, limit=limit)
    ]


def _readable(fact: fleet.StoredFact) -> dict[str, Any] | None:
    if fact.kind is None:
        return None
    value: dict[str, Any] = json.loads(fact.line)
    return value
