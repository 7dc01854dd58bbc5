"""Plans: made from what is known now, kept with their inputs, released into work orders."""

from collections import defaultdict
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from fleet_server.clock import LOCAL, days_before
from fleet_server.database import Connection
from fleet_server.demand import rates
from fleet_server.devices import fleet
from fleet_server.devices.store import read_state, server_epoch, write_state
from fleet_server.errors import ConflictError, NotFoundError
from fleet_server.faults.store import open_faults
from fleet_server.ledger import depot, reading
from fleet_server.planning import planner, store
from fleet_server.workorders import service as workorders
from fleet_server.workorders.store import promised
from protocol.messages import SlotPlan

# Where tours begin (assumption: the district's supply station in Changjiang Road Subdistrict).
DEPOT_PLACE: Final = (35.966, 120.173)
LATE_DAYS: Final = 3.0
"""What a phone has not told after so long is no longer taken for loaded."""


class MadePlan(NamedTuple):
    """A plan that was just made, and what was known then."""

    id: str
    inputs: dict[str, Any]


def make_plan(connection: Connection, depot_id: str, now: datetime) -> MadePlan:
    """Make and keep a plan for today; supersedes one that is only proposed."""
    store.lock(connection)
    inputs = gather(connection, depot_id, now)
    day = now.astimezone(LOCAL).date()
    prefix = f"P{day:%Y%m%d}-"
    plan_id = f"{prefix}{store.count_of_day(connection, prefix) + 1}{_of_epoch(server_epoch(connection))}"
    row = {
        "id": plan_id, "depot_id": depot_id, "day": day, "state": "proposed", "created_at": now,
        "inputs": inputs, "result": planner.make(inputs),
    }  # fmt: skip
    store.write(connection, row)
    return MadePlan(plan_id, inputs)


def _of_epoch(epoch: int) -> str:
    """What tells the plans, work orders and visits of a restored server from those that it no longer knows."""
    return "" if epoch == 1 else f"-{epoch:x}"


def gather(connection: Connection, depot_id: str, now: datetime) -> dict[str, Any]:
    """Collect everything a plan depends on, as plain values."""
    dispensers = [d for d in fleet.list_dispensers(connection) if d.depot_id == depot_id]
    plans = fleet.planogram(connection)
    stock = reading.slot_stock(connection)
    ever_loaded = {dispenser_id for dispenser_id, _ in stock}
    packs = rates.observed(reading.dispensed_per_slot(connection, days_before(now, rates.WINDOW_DAYS), now))
    since = store.observed_since(connection)
    days = {dispenser_id: (now - at) / timedelta(days=1) for dispenser_id, at in since.items()}
    by_machine = rates.rates(
        {d.id: d.site_type for d in dispensers},
        {d.id: [plan.product for plan in plans.get(d.id, [])] for d in dispensers},
        packs,
        days,
    )
    counts = store.last_counts(connection)
    busy = promised(connection)
    visits = store.last_visits(connection)
    under_way = store.in_transit(connection, days_before(now, LATE_DAYS))
    faults = defaultdict(list)
    for fault in open_faults(connection):
        tried_at = visits.get(fault.dispenser_id)
        tried = tried_at is not None and tried_at >= fault.opened_at
        days_ago = _days_ago(tried_at if tried else None, now)
        faults[fault.dispenser_id].append({"code": fault.code, "slot": fault.slot, "tried_days_ago": days_ago})
    return {
        "now": now.isoformat(),
        "today": now.astimezone(LOCAL).date().isoformat(),
        "depot": list(DEPOT_PLACE),
        "depot_stock": [
            {
                "product": line.product, "lot": line.lot, "packs": line.units, "blocked": line.blocked is not None,
                "expires_on": line.expires_on.isoformat() if line.expires_on else None,
            }
            for line in depot.depot_stock(connection, depot_id)
        ],
        "dispensers": [
            {
                "id": d.id,
                "latitude": d.latitude,
                "longitude": d.longitude,
                "promised": d.id in busy,
                "ever_loaded": d.id in ever_loaded,
                "counted_days_ago": _days_ago(counts.get(d.id), now),
                "faults": faults[d.id],
                "rates": {p.product: round(by_machine[d.id, p.product], 4) for p in plans.get(d.id, [])},
                "slots": [
                    _slot(plan, stock.get((d.id, plan.slot)), under_way.get((d.id, plan.slot), 0))
                    for plan in plans.get(d.id, [])
                ],
            }
            for d in dispensers
        ],
    }  # fmt: skip


def _days_ago(at: datetime | None, now: datetime) -> int | None:
    return None if at is None else max(0, (now - at).days)


def _slot(plan: SlotPlan, stock: reading.SlotStock | None, in_transit: int) -> dict[str, Any]:
    queue = [
        {
            "lot": run.lot, "packs": run.packs, "blocked": run.blocked is not None,
            "expires_on": run.expires_on.isoformat() if run.expires_on else None,
        }
        for run in (stock.queue if stock else [])
    ]  # fmt: skip
    return {
        "slot": plan.slot, "product": plan.product, "capacity": plan.capacity, "enabled": plan.enabled,
        "owed": stock.owed if stock else 0, "in_transit": in_transit, "queue": queue,
    }  # fmt: skip


def get_plan(connection: Connection, plan_id: str) -> dict[str, Any]:
    """Return a plan; raises NotFoundError."""
    plan = store.read(connection, plan_id)
    if plan is None:
        raise NotFoundError("plan_id", plan_id, "the id of a plan")
    return plan


def short_of(plan: MadePlan) -> dict[str, str]:
    """Return, for each machine that a plan found short of stock, the products in words."""
    return {
        dispenser_id: ", ".join(f"{r['product']}: {r['stock']} of at least {r['minimum']}" for r in reasons)
        for dispenser_id, reasons in planner.short_of(plan.inputs).items()
    }


def list_plans(connection: Connection, limit: int = 30) -> list[dict[str, Any]]:
    """Return the newest plans."""
    return store.newest(connection, limit)


def replan(connection: Connection, plan_id: str) -> dict[str, Any]:
    """Make a past plan again from its kept inputs, without keeping the result."""
    return planner.make(get_plan(connection, plan_id)["inputs"])


def release(connection: Connection, plan_id: str, now: datetime) -> list[str]:
    """Release a proposed plan: each tour becomes a work order. Returns their ids; a second release returns the same."""
    store.lock(connection)
    plan = get_plan(connection, plan_id)
    if plan["state"] == "superseded":
        raise ConflictError("state", plan["state"], "a proposed plan; a newer one has replaced this")
    ids = []
    for number, tour in enumerate(plan["result"]["tours"], 1):
        order_id = f"W{plan_id[1:]}-{number}"
        stops = [
            workorders.PlannedStop(
                stop["dispenser_id"], stop["reasons"], [workorders.PlannedPick(**pick) for pick in stop["picks"]]
            )
            for stop in tour["stops"]
        ]
        workorders.create(connection, order_id, plan_id, plan["depot_id"], plan["day"], stops, now)
        ids.append(order_id)
    store.release(connection, plan_id, now)
    return ids


def counted_at(connection: Connection) -> dict[str, datetime | None]:
    """Return since when every slot of a loaded machine has been counted; None while one never was."""
    return store.last_counts(connection)


def auto_release(connection: Connection) -> bool:
    """Tell whether a plan that nobody has released in the morning is released by itself; it is not unless switched on."""
    return bool(read_state(connection, "auto_release"))


def set_auto_release(connection: Connection, *, on: bool) -> None:
    """Switch the release of plans without a dispatcher on or off."""
    write_state(connection, "auto_release", on)
