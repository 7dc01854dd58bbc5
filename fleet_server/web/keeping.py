"""What a phone is to keep of a work order: its own entries, as a server that was restored from a backup takes them again."""

from typing import Any

from fleet_server.auth.service import Person
from fleet_server.database import Connection
from fleet_server.devices.store import server_epoch
from fleet_server.ledger import reading
from fleet_server.recovery.kept import KEPT


def kept_here(connection: Connection, person: Person) -> dict[str, Any]:
    """Return what a page tells the phone so that it knows whether to offer, to whom, and in whose name."""
    return {
        "epoch": server_epoch(connection),
        "actor": person.actor,
        "csrf": person.csrf_token,
        "days": KEPT.days,
        "orders": {},
    }


def kept_of(connection: Connection, person: Person, order: dict[str, Any], moves: dict[str, str]) -> dict[str, Any]:
    """Return the same with this person's entries of one work order, in the form of `POST /api/v1/recovery/operations`.

    `moves` names the operations of the pages' own pick and return: those of another client are for that one to keep.
    """
    visits = []
    for stop in order["stops"]:
        entries = [
            row for row in reading.operations_of_visit(connection, stop["visit_id"]) if row["actor"] == person.actor
        ]
        if entries:
            names = {"visit_id": stop["visit_id"], "work_order_id": order["id"], "dispenser_id": stop["dispenser_id"]}
            visits.append(names | {"operations": [_entry(row) for row in entries]})
    depot = [
        _move(kind, row, order)
        for kind, operation_id in moves.items()
        if (row := reading.operation(connection, operation_id)) is not None and row["actor"] == person.actor
    ]
    return kept_here(connection, person) | {"orders": {order["id"]: {"depot": depot, "visits": visits}}}


def _entry(row: Any) -> dict[str, Any]:
    said = ("session", "kind", "slot", "counted", "product", "lot", "packs", "reason")
    return {
        "operation_id": row["operation_id"],
        "index": row["step"],
        "entered_at": row["entered_at"].isoformat(),
        **{name: row["payload"][name] for name in said},
    }


def _move(kind: str, row: Any, order: dict[str, Any]) -> dict[str, Any]:
    lines = row["payload"]["lines"]
    if kind == "pick":
        # What moved is in the operation; for which slot of which machine is noted with the stops, in the order of the page.
        lines = [
            {"dispenser_id": stop["dispenser_id"], "packs": pick["picked"] or 0}
            | {name: pick[name] for name in ("slot", "product", "lot")}
            for stop in order["stops"]
            for pick in stop["picks"]
        ]
    return {
        "kind": kind,
        "operation_id": row["operation_id"],
        "work_order_id": order["id"],
        "entered_at": row["entered_at"].isoformat(),
        "lines": lines,
    }
