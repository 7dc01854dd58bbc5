"""Lots: every pack belongs to one, and every lot has an expiry date."""

from dataclasses import dataclass
from datetime import date, datetime

from fleet_server.database import Connection
from fleet_server.devices.fleet import list_products
from fleet_server.errors import InputError, NotFoundError
from fleet_server.ledger import lot_store
from fleet_server.ledger.movements import Verdict


@dataclass(frozen=True, slots=True)
class Lot:
    """A lot of a product; `blocked` holds the reason why it must not be dispensed."""

    product: str
    lot: str
    expires_on: date
    blocked: str | None


def record_lot(connection: Connection, product: str, lot: str, expires_on: date, now: datetime) -> Verdict:
    """Register a lot of a known product; the same lot with another expiry is conflicting and changes nothing."""
    products = {item.code for item in list_products(connection)}
    if product not in products:
        raise InputError("product", product, f"one of {', '.join(sorted(products))}")
    before = {(item.product, item.lot) for item in list_lots(connection)}
    stands = lot_store.write_lot(connection, product, lot, expires_on, now)
    if stands != expires_on:
        return Verdict.CONFLICTING
    return Verdict.REPEATED if (product, lot) in before else Verdict.BOOKED


def list_lots(connection: Connection) -> list[Lot]:
    """List all lots, first expired first within a product."""
    return [Lot(*row) for row in lot_store.read_lots(connection)]


def block_lot(connection: Connection, product: str, lot: str, reason: str | None) -> None:
    """Block a lot for a reason (heat, recall), or free it again; raises NotFoundError."""
    if not lot_store.set_blocked(connection, product, lot, reason):
        raise NotFoundError("lot", f"{product} {lot}", "a registered lot of this product")
