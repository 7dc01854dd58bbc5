"""What both the API and the pages show, gathered from the features."""

import json
from dataclasses import asdict
from datetime import datetime
from typing import Any

from fleet_server.database import Connection
from fleet_server.devices import fleet
from fleet_server.faults.store import list_faults, open_faults
from fleet_server.ledger import reading
from fleet_server.web import models as m


def overview(connection: Connection, now: datetime) -> list[m.DispenserItem]:
    """Return one line for each machine."""
    return _items(connection, now, fleet.list_dispensers(connection))


def _items(connection: Connection, now: datetime, dispensers: list[fleet.Dispenser]) -> list[m.DispenserItem]:
    ids = [dispenser.id for dispenser in dispensers]
    plans, stock = fleet.planogram(connection, ids), reading.slot_stock(connection, ids)
    presence, last = fleet.presence(connection), fleet.last_fact_at(connection)
    faults: dict[str, int] = {}
    for fault in open_faults(connection, ids):
        faults[fault.dispenser_id] = faults.get(fault.dispenser_id, 0) + 1
    items = []
    for dispenser in dispensers:
        slots = plans.get(dispenser.id, [])
        units = [stock[dispenser.id, plan.slot].units if (dispenser.id, plan.slot) in stock else 0 for plan in slots]
        here, at = presence.get(dispenser.id), last.get(dispenser.id)
        items.append(
            m.DispenserItem(
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
                faults_open=faults.get(dispenser.id, 0),
            )
        )
    return items


def detail(connection: Connection, dispenser_id: str, now: datetime) -> m.DispenserDetail:
    """Return everything known of one machine; raises NotFoundError."""
    dispenser = fleet.get_dispenser(connection, dispenser_id)
    (item,) = _items(connection, now, [dispenser])
    stock = reading.slot_stock(connection, [dispenser_id])
    slots = []
    for plan in fleet.planogram(connection, [dispenser_id]).get(dispenser_id, []):
        held = stock.get((dispenser_id, plan.slot)) or reading.SlotStock([], 0, 0)
        queue = [
            m.QueuedLot(
                product=run.product, lot=run.lot, packs=run.packs, expires_on=run.expires_on, blocked=run.blocked
            )
            for run in held.queue
        ]
        slots.append(m.SlotItem(**plan.model_dump(), units=held.units, owed=held.owed, queue=queue))
    faults = [
        m.FaultItem(code=f.code, slot=f.slot or None, source=f.source, detail=f.detail, opened_at=f.opened_at)
        for f in open_faults(connection, [dispenser_id])
    ]
    return m.DispenserDetail(
        **item.model_dump(),
        latitude=dispenser.latitude,
        longitude=dispenser.longitude,
        opens_hour=dispenser.opens_hour,
        closes_hour=dispenser.closes_hour,
        note=dispenser.note,
        slots=slots,
        faults=faults,
        vitals=fleet.latest_vitals(connection).get(dispenser_id, {}),
        door_open=reading.door_state(connection, dispenser_id).open,
    )


def past_faults(
    connection: Connection, code: str | None, dispenser_id: str | None, before: int | None, limit: int
) -> list[m.PastFaultItem]:
    """Return faults, newest first, whether they have ended or not."""
    found = list_faults(connection, code=code, dispenser_id=dispenser_id, before=before, limit=limit)
    return [m.PastFaultItem(**asdict(fault) | {"slot": fault.slot or None}) for fault in found]


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
