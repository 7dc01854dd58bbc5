"""The table of plans."""

from datetime import datetime
from typing import Any

from sqlalchemy import Column, Date, Table, Text, select, text, update
from sqlalchemy.dialects.postgresql import JSONB, insert

from fleet_server.database import Connection, metadata
from fleet_server.devices.store import MOMENT

plans = Table(
    "plans",
    metadata,
    Column("id", Text, primary_key=True),
    Column("depot_id", Text, nullable=False),
    Column("day", Date, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_at", MOMENT, nullable=False),
    Column("released_at", MOMENT),
    Column("inputs", JSONB, nullable=False),
    Column("result", JSONB, nullable=False),
)


def write(connection: Connection, row: dict[str, Any]) -> None:
    """Add a plan, and supersede the ones of the same depot that are still proposed."""
    connection.execute(
        update(plans).where(plans.c.depot_id == row["depot_id"], plans.c.state == "proposed").values(state="superseded")
    )
    connection.execute(insert(plans).values(row))


def read(connection: Connection, plan_id: str, *, lock: bool = False) -> dict[str, Any] | None:
    """Return one plan."""
    query = select(plans).where(plans.c.id == plan_id)
    row = connection.execute(query.with_for_update() if lock else query).mappings().first()
    return dict(row) if row else None


def newest(connection: Connection, limit: int) -> list[dict[str, Any]]:
    """Return the newest plans, without their inputs."""
    query = select(*(column for column in plans.c if column.name != "inputs"))
    query = query.order_by(plans.c.created_at.desc(), plans.c.id.desc()).limit(limit)
    return [dict(row) for row in connection.execute(query).mappings()]


def count_of_day(connection: Connection, prefix: str) -> int:
    """Return how many plans have an id that begins so."""
    query = text("SELECT count(*) FROM plans WHERE id LIKE :prefix")
    return int(connection.execute(query, {"prefix": f"{prefix}%"}).scalar_one())


def release(connection: Connection, plan_id: str, now: datetime) -> None:
    """Note that a plan was released."""
    connection.execute(update(plans).where(plans.c.id == plan_id).values(state="released", released_at=now))


def last_counts(connection: Connection) -> dict[str, datetime]:
    """Return when each machine was last counted."""
    query = text("""
        SELECT dispenser_id, max(entered_at) AS at FROM operations
        WHERE kind = 'count' AND slot IS NOT NULL GROUP BY dispenser_id""")
    return {row.dispenser_id: row.at for row in connection.execute(query)}


def observed_since(connection: Connection) -> dict[str, datetime]:
    """Return when each machine's first stream began."""
    query = text("SELECT dispenser_id, min(began_at) AS at FROM streams GROUP BY dispenser_id")
    return {row.dispenser_id: row.at for row in connection.execute(query)}
