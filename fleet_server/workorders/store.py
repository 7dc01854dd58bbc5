"""Tables of work orders, and every statement on them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Date, ForeignKey, Index, Integer, Table, Text, func, select, update
from sqlalchemy.dialects.postgresql import JSONB, insert

from fleet_server.database import Connection, metadata
from fleet_server.devices.store import MOMENT, dispensers
from fleet_server.workorders.states import OPEN_ORDERS, OPEN_STOPS, StopState

work_orders = Table(
    "work_orders",
    metadata,
    Column("id", Text, primary_key=True),
    Column("plan_id", Text, nullable=False),
    Column("depot_id", Text, nullable=False),
    Column("day", Date, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_at", MOMENT, nullable=False),
    Column("changed_at", MOMENT, nullable=False),
)
Index("ix_work_orders_day", work_orders.c.day, work_orders.c.id)
Index("ix_work_orders_open", work_orders.c.id, postgresql_where=work_orders.c.state.in_(["released", "picked"]))

stops = Table(
    "stops",
    metadata,
    Column("visit_id", Text, primary_key=True),
    Column("work_order_id", Text, ForeignKey("work_orders.id"), nullable=False, index=True),
    Column("position", Integer, nullable=False),
    Column("dispenser_id", Text, nullable=False, index=True),
    Column("state", Text, nullable=False),
    Column("reasons", JSONB, nullable=False),
    Column("changed_at", MOMENT, nullable=False, index=True),
    Column("skipped_because", Text),
    Column("unlock_order_id", Text),
)
Index("ix_stops_closed", stops.c.dispenser_id, stops.c.changed_at, postgresql_where=stops.c.state == StopState.CLOSED)

picks = Table(
    "picks",
    metadata,
    Column("visit_id", Text, ForeignKey("stops.visit_id"), primary_key=True),
    Column("slot", Integer, primary_key=True),
    Column("product", Text, primary_key=True),
    Column("lot", Text, primary_key=True),
    Column("planned", Integer, nullable=False),
    Column("picked", Integer),
)


def write_order(connection: Connection, order: Mapping[str, Any], stop_rows: Sequence[Mapping[str, Any]]) -> None:
    """Add a work order with its stops (each with its picks under `picks`); one that exists stays as it is."""
    if not connection.execute(insert(work_orders).values(dict(order)).on_conflict_do_nothing()).rowcount:
        return
    if not stop_rows:
        return
    connection.execute(
        insert(stops), [{name: value for name, value in row.items() if name != "picks"} for row in stop_rows]
    )
    picked = [dict(pick) | {"visit_id": row["visit_id"]} for row in stop_rows for pick in row["picks"]]
    if picked:
        connection.execute(insert(picks), picked)


def read_orders(connection: Connection, state: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
    """Return work orders, newest first."""
    query = select(work_orders)
    if state is not None:
        query = query.where(work_orders.c.state == state)
    query = query.order_by(work_orders.c.day.desc(), work_orders.c.id.desc()).limit(limit)
    return [dict(row) for row in connection.execute(query).mappings()]


def count_stops(connection: Connection, order_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return of each work order how many stops it has, and how many of them are over."""
    over = func.count().filter(stops.c.state.not_in(OPEN_STOPS))
    query = select(stops.c.work_order_id, func.count(), over).where(stops.c.work_order_id.in_(order_ids))
    return {row[0]: (row[1], row[2]) for row in connection.execute(query.group_by(stops.c.work_order_id))}


def read_order(connection: Connection, order_id: str, *, lock: bool = False) -> dict[str, Any] | None:
    """Return one work order."""
    query = select(work_orders).where(work_orders.c.id == order_id)
    row = connection.execute(query.with_for_update() if lock else query).mappings().first()
    return dict(row) if row else None


def read_stops(connection: Connection, order_id: str) -> list[dict[str, Any]]:
    """Return a work order's stops with their machines' names, in order, each with its picks."""
    query = (
        select(stops, dispensers.c.name_zh, dispensers.c.name_en, dispensers.c.opens_hour, dispensers.c.closes_hour)
        .join(dispensers, dispensers.c.id == stops.c.dispenser_id)
        .where(stops.c.work_order_id == order_id)
        .order_by(stops.c.position)
    )
    found = [dict(row) | {"picks": []} for row in connection.execute(query).mappings()]
    by_id = {row["visit_id"]: row for row in found}
    picked = select(picks).where(picks.c.visit_id.in_(by_id)).order_by(picks.c.visit_id, picks.c.slot, picks.c.lot)
    for row in connection.execute(picked).mappings():
        by_id[row["visit_id"]]["picks"].append(dict(row))
    return found


def read_stop(connection: Connection, visit_id: str, *, lock: bool) -> dict[str, Any] | None:
    """Return one stop with the depot of its work order."""
    query = (
        select(stops, work_orders.c.depot_id, work_orders.c.state.label("order_state"))
        .join(work_orders, work_orders.c.id == stops.c.work_order_id)
        .where(stops.c.visit_id == visit_id)
    )
    row = connection.execute(query.with_for_update(of=stops) if lock else query).mappings().first()
    return dict(row) if row else None


def set_order_state(connection: Connection, order_id: str, state: str, now: datetime) -> None:
    """Change a work order's state."""
    connection.execute(update(work_orders).where(work_orders.c.id == order_id).values(state=state, changed_at=now))


def set_stop(connection: Connection, visit_id: str, now: datetime, **values: Any) -> None:
    """Change a stop."""
    connection.execute(update(stops).where(stops.c.visit_id == visit_id).values(changed_at=now, **values))


def set_picked(
    connection: Connection, visit_ids: Sequence[str], picked: Mapping[tuple[str, int, str, str], int]
) -> None:
    """Record what was picked by (visit_id, slot, product, lot): nothing of what is not named, though planned."""
    connection.execute(update(picks).where(picks.c.visit_id.in_(visit_ids)).values(picked=0))
    if not picked:
        return
    rows = [
        {"visit_id": visit_id, "slot": slot, "product": product, "lot": lot, "planned": 0, "picked": packs}
        for (visit_id, slot, product, lot), packs in picked.items()
    ]
    query = insert(picks)
    key = ["visit_id", "slot", "product", "lot"]
    connection.execute(query.on_conflict_do_update(index_elements=key, set_={"picked": query.excluded.picked}), rows)


def promised(connection: Connection) -> set[str]:
    """Return the machines that open work orders are still to visit."""
    query = (
        select(stops.c.dispenser_id)
        .join(work_orders, work_orders.c.id == stops.c.work_order_id)
        .where(work_orders.c.state.in_(OPEN_ORDERS), stops.c.state.in_([StopState.PLANNED, StopState.ARRIVED]))
    )
    return set(connection.execute(query).scalars())
