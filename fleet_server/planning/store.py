"""The table of plans."""

from datetime import datetime
from typing import Any

from sqlalchemy import Column, Date, Index, Table, Text, select, text, update
from sqlalchemy.dialects.postgresql import JSONB, insert

from fleet_server.database import Connection, metadata
from fleet_server.devices.store import MOMENT

PLANS_LOCK = 0x706C616E

plans = Table(
    "plans",
    metadata,
    Column("id", Text(collation="C"), primary_key=True),
    Column("depot_id", Text, nullable=False),
    Column("day", Date, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_at", MOMENT, nullable=False),
    Column("released_at", MOMENT),
    Column("inputs", JSONB, nullable=False),
    Column("result", JSONB, nullable=False),
)
Index("ix_plans_created_at", plans.c.created_at, plans.c.id)
Index("ix_plans_proposed", plans.c.depot_id, postgresql_where=plans.c.state == "proposed")


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


def last_counts(connection: Connection) -> dict[str, datetime | None]:
    """Return since when every enabled slot of a machine has been counted, of machines that were ever loaded.

    None while some slot never was. A phone whose clock runs ahead counts as of the arrival of its entry.
    """
    query = text("""
        SELECT dispenser_id, CASE WHEN bool_and(at IS NOT NULL) THEN min(at) END AS at
        FROM (
            -- The newest count of each slot, by one step into an index, however many there were.
            SELECT s.dispenser_id, (
                SELECT max(least(o.entered_at, o.received_at)) FROM operations o
                WHERE o.dispenser_id = s.dispenser_id AND o.slot = s.slot AND o.kind = 'count') AS at
            FROM slots s
            WHERE s.enabled AND s.dispenser_id IN (SELECT dispenser_id FROM slot_books)
        ) AS each_slot
        GROUP BY dispenser_id ORDER BY dispenser_id""")
    return {row.dispenser_id: row.at for row in connection.execute(query)}


def last_visits(connection: Connection) -> dict[str, datetime]:
    """Return when a visit of each machine was last closed."""
    query = text("""
        SELECT d.id, (SELECT max(changed_at) FROM stops WHERE dispenser_id = d.id AND state = 'closed') AS at
        FROM dispensers d""")
    return {row.id: row.at for row in connection.execute(query) if row.at is not None}


def in_transit(connection: Connection, since: datetime) -> dict[tuple[str, int], int]:
    """Return packs that went to a slot and are not in its book yet, by (dispenser_id, slot).

    They were entered and wait for the machine's door session; or somebody was there since `since`, and the phone has
    told nothing yet. (A machine whose visit is still to come is not planned at all.)
    """
    query = text("""
        SELECT dispenser_id, slot, sum(packs) AS packs FROM (
            SELECT dispenser_id, slot, CAST(payload ->> 'packs' AS int) AS packs
            FROM operations WHERE state = 'waiting' AND kind = 'refill'
            UNION ALL
            SELECT s.dispenser_id, p.slot, coalesce(p.picked, p.planned)
            FROM picks p JOIN stops s ON s.visit_id = p.visit_id
            WHERE s.state IN ('arrived', 'closed') AND s.changed_at > :since
              AND NOT EXISTS (SELECT 1 FROM operations o WHERE o.visit_id = s.visit_id)
        ) AS under_way
        GROUP BY dispenser_id, slot""")
    rows = connection.execute(query, {"since": since})
    return {(row.dispenser_id, row.slot): int(row.packs) for row in rows}


def lock(connection: Connection) -> None:
    """One at a time makes or releases plans: two must not promise the same machine."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": PLANS_LOCK})


def observed_since(connection: Connection) -> dict[str, datetime]:
    """Return when each machine's first stream began."""
    query = text("SELECT dispenser_id, min(began_at) AS at FROM streams GROUP BY dispenser_id")
    return {row.dispenser_id: row.at for row in connection.execute(query)}
