"""What could not come back after a restore, as far as anything still tells of it; in words."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fleet_server.clock import LOCAL
from fleet_server.database import Connection
from fleet_server.devices.gap_store import list_gaps
from fleet_server.devices.store import read_state
from fleet_server.recovery import losses_store


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that is missing, or may be. `place` is the dispenser, or the account."""

    kind: str
    place: str
    words: str


def losses(connection: Connection) -> list[Loss]:
    """List what is missing: gaps of streams always, everything else once this server was restored."""
    found = [*_gaps(connection)]
    restored = read_state(connection, "restored")
    if restored is not None:
        at = datetime.fromisoformat(restored["restored_at"])
        found += [*_streams(connection, at), *_doors(connection, at), *_answers(connection), *_orders(connection)]
        found += [*_entries(connection), *_stock(connection)]
    return found


def _gaps(connection: Connection) -> Iterator[Loss]:
    for gap in list_gaps(connection):
        words = f"facts {gap.first_seq} to {gap.last_seq} of stream {gap.stream_no} are gone: the machine no longer had them"
        yield Loss("facts", gap.dispenser_id, words)


def _streams(connection: Connection, restored_at: datetime) -> Iterator[Loss]:
    heard = losses_store.heard_since(connection, restored_at)
    for row in losses_store.streams_at_rest(connection):
        place = f"stream {row.stream_no} stands at fact {row.through_seq}"
        if row.replaced:
            words = f"{place}, and a new stream began since the backup: what it told after that is gone with the former card"
            yield Loss("stream", row.dispenser_id, words)
        elif row.dispenser_id not in heard:
            yield Loss("silent", row.dispenser_id, f"{place}, and the machine has not been heard of since the restore")


def _doors(connection: Connection, restored_at: datetime) -> Iterator[Loss]:
    for row in losses_store.doors_without_entries(connection, restored_at):
        at = row.opened_at.astimezone(LOCAL)
        words = f"the door was open on {at:%Y-%m-%d %H:%M} (session {row.session}), and no count, refill or removal of it came back"
        yield Loss("visit", row.dispenser_id, words)


def _answers(connection: Connection) -> Iterator[Loss]:
    orders = losses_store.known_keys(connection, "orders")
    for dispenser_id, _, seq, line in losses_store.facts_beyond(connection, "order_result"):
        fact = json.loads(line)
        if (dispenser_id, fact["order_id"]) not in orders:
            words = (
                f"order {fact['order_id']} was answered {fact['outcome']!r} (fact {seq}); who gave it and why is lost"
            )
            yield Loss("order", dispenser_id, words)
    desired = losses_store.known_keys(connection, "desired")
    newest: dict[str, Any] = {}
    for dispenser_id, _, _, line in losses_store.facts_beyond(connection, "config_applied"):
        fact = json.loads(line)
        if fact["what"] == "desired" and fact["applied"] and (dispenser_id, str(fact["version"])) not in desired:
            newest[dispenser_id] = fact["version"]
    for dispenser_id, version in newest.items():
        words = (
            f"desired state {version} was applied, and is not known here: planogram, lots, limits or hours were changed"
        )
        yield Loss("desired", dispenser_id, words)


def _orders(connection: Connection) -> Iterator[Loss]:
    for row in losses_store.orders_still_unknown(connection):
        yield Loss("order", row.dispenser_id, f"whether order {row.key} ({row.kind}) was carried out is unknown")


def _entries(connection: Connection) -> Iterator[Loss]:
    for row in losses_store.waiting(connection):
        session = f"door session {row.session}" if row.session else "a door session without a code"
        words = f"the {row.kind} {row.operation_id} at slot {row.slot} waits for {session}, of which no fact has come"
        yield Loss("waiting", row.dispenser_id, words)
    for row in losses_store.visits_without_plan(connection):
        order = row.van.partition("/")[2]
        words = f"visit {row.visit_id} came back with {row.entries} entries; its work order {order}, plan and reasons are lost"
        yield Loss("work_order", row.dispenser_id, words)


def _stock(connection: Connection) -> Iterator[Loss]:
    for row in losses_store.overdrawn(connection):
        missing = "a receipt or a return" if row.account.startswith("depot/") else "its pick"
        words = f"{-row.units} packs more of {row.product} {row.lot} went out than ever came in: {missing} has not come back"
        yield Loss("stock", row.account, words)
