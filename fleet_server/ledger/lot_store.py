"""The table of lots and every statement on it alone."""

from datetime import date, datetime

from sqlalchemy import Column, Date, Table, Text, select, update
from sqlalchemy.dialects.postgresql import insert

from fleet_server.database import Connection, metadata
from fleet_server.devices.store import MOMENT

lots = Table(
    "lots",
    metadata,
    Column("product", Text, primary_key=True),
    Column("lot", Text, primary_key=True),
    Column("expires_on", Date, nullable=False),
    Column("blocked", Text),
    Column("created_at", MOMENT, nullable=False),
)


def write_lot(connection: Connection, product: str, lot: str, expires_on: date, now: datetime) -> date:
    """Register a lot unless it exists; returns the expiry that stands."""
    row = {"product": product, "lot": lot, "expires_on": expires_on, "created_at": now}
    connection.execute(insert(lots).values(row).on_conflict_do_nothing())
    query = select(lots.c.expires_on).where(lots.c.product == product, lots.c.lot == lot)
    stands: date = connection.execute(query).scalar_one()
    return stands


def read_lots(connection: Connection) -> list[tuple[str, str, date, str | None]]:
    """Return all lots: (product, lot, expires_on, blocked)."""
    query = select(lots.c.product, lots.c.lot, lots.c.expires_on, lots.c.blocked)
    return [tuple(row) for row in connection.execute(query.order_by(lots.c.product, lots.c.expires_on, lots.c.lot))]


def set_blocked(connection: Connection, product: str, lot: str, reason: str | None) -> bool:
    """Block a lot for a reason, or free it; returns whether it exists."""
    query = update(lots).where(lots.c.product == product, lots.c.lot == lot).values(blocked=reason)
    return connection.execute(query).rowcount > 0
