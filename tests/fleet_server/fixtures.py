"""A database with one dispenser of two slots, two lots in the depot, and helpers to speak with ingest."""

import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from fleet_server.database import Database
from fleet_server.devices import fleet
from fleet_server.ingest.answers import Reply
from fleet_server.ingest.apply import Received, apply
from fleet_server.ledger import depot, lots
from fleet_server.ledger.operations import Booking, SlotOperation, book
from protocol.messages import SlotPlan
from tests.fleet_server.machine import BASE_MS, Machine

NOW = datetime.fromtimestamp(BASE_MS / 1000, UTC) + timedelta(days=2)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """The schema of a new server, one dispenser HD-001 (and HD-002), lots L1 and L2, 500 packs each in the depot."""
    opened = Database(database_url)
    plant(opened)
    yield opened
    opened.close()


def plant(database: Database) -> None:
    """Register what the tests speak of."""
    with database.begin() as connection:
        product = fleet.Product("CONDOM-M", "避孕套", "Condom", "盒", "box", 10, 120, 60)
        fleet.add_products(connection, [product])
        for number in (1, 2):
            dispenser = fleet.Dispenser(
                f"HD-00{number}", "点位", "Site", "街道", "Street", "370211001", "community", "indoor", 36.0, 120.1,
                0, 24, "HUANGDAO", None, None, "",
            )  # fmt: skip
            fleet.add_dispensers(connection, [dispenser])
            plans = [SlotPlan(slot=slot, product="CONDOM-M", capacity=20) for slot in (1, 2)]
            fleet.add_slots(connection, dispenser.id, plans)
        for lot, expires_on in (("L1", date(2029, 1, 1)), ("L2", date(2030, 1, 1))):
            lots.record_lot(connection, "CONDOM-M", lot, expires_on, NOW)
            line = depot.StockLine("CONDOM-M", lot, 500)
            depot.receive(connection, f"receipt-{lot}", "HUANGDAO", [line], "test", NOW)


def send(database: Database, machine: Machine, first: int = 1, last: int | None = None, **more: Any) -> list[Reply]:
    """Let ingest apply one batch, in a transaction of its own."""
    return send_bytes(database, machine.dispenser_id, machine.batch(first, last), **more)


def send_bytes(database: Database, dispenser_id: str, payload: bytes, now: datetime = NOW) -> list[Reply]:
    received = Received(f"fleet/v1/{dispenser_id}/facts", dispenser_id, payload)
    with database.begin() as connection:
        return apply(connection, [received], now, 1)[0]


def operation(kind: Any, session: str | None, step: int, slot: int = 1, **more: Any) -> SlotOperation:
    """An operation of a phone at HD-001 from the van of tour T1."""
    fields: dict[str, Any] = {
        "operation_id": uuid.uuid4().hex, "dispenser_id": "HD-001", "visit_id": "V1", "entered_at": NOW,
        "actor": "user:li", "van": "van/T1", "product": "CONDOM-M",
    }  # fmt: skip
    return SlotOperation(**fields | more, slot=slot, kind=kind, session=session, step=step)


def enter(database: Database, *operations: SlotOperation) -> list[Booking]:
    """Book operations, in a transaction of their own."""
    with database.begin() as connection:
        return book(connection, operations, NOW)
