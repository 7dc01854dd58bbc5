"""Everything that is to be sent to machines. A feature asks here, in its own transaction; ingest sends until answered."""

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

from fleet_server.database import Connection
from fleet_server.devices import outgoing_store as store
from fleet_server.devices import store as devices
from fleet_server.devices.machines import Outgoing
from fleet_server.errors import NotFoundError
from protocol.topics import Channel

OrderKind = Literal["unlock", "test_vend", "clear_jam", "reboot", "self_test", "new_stream"]


def order(
    connection: Connection,
    dispenser_id: str,
    kind: OrderKind,
    *,
    lives_s: int,
    now: datetime,
    slot: int | None = None,
    stream_id: str | None = None,
) -> str:
    """Ask a machine to do something within `lives_s`; returns the order's id. It runs at most once.

    With `stream_id` it is sent on that stream only: on another one there is nothing that it could mend.

    The id follows from the machine, the number of its orders and the server's epoch: a history played twice gives the same
    facts, and a restored server never gives an id that a machine has already answered.
    """
    devices.lock(connection, [dispenser_id])
    number = store.count_orders(connection, dispenser_id) + 1
    name = f"{dispenser_id}/order/{devices.server_epoch(connection)}/{number}"
    order_id = hashlib.sha256(name.encode()).hexdigest()[:32]
    more = {"slot": slot, "stream_id": stream_id}
    payload: dict[str, Any] = {"kind": kind} | {name: value for name, value in more.items() if value is not None}
    rows = [(dispenser_id, order_id, payload)]
    store.write(connection, Channel.ORDERS, rows, now, now + timedelta(seconds=lives_s))
    return order_id


def tell(
    connection: Connection,
    channel: Literal[Channel.DESIRED, Channel.BOOKS],
    payloads: Mapping[str, dict[str, Any]],
    now: datetime,
) -> None:
    """Tell machines their desired state or their books, each superseding the former; the caller holds their locks."""
    if not payloads:
        return
    versions = store.next_versions(connection, list(payloads), channel)
    store.supersede(connection, list(payloads), channel, now)
    rows = [(name, str(versions[name]), value | {"version": versions[name]}) for name, value in payloads.items()]
    store.write(connection, channel, rows, now, None)


def order_state(connection: Connection, order_id: str) -> Outgoing:
    """Return an order and what became of it; raises NotFoundError."""
    found = store.find(connection, order_id)
    if found is None:
        raise NotFoundError("order_id", order_id, "the id of an order")
    return found


def pending(connection: Connection, dispenser_id: str) -> list[Outgoing]:
    """List what a machine has not yet answered, oldest first."""
    return store.unanswered(connection, dispenser_id)


def expire(connection: Connection, now: datetime) -> int:
    """Answer orders that nobody answered in time as `expired`; returns how many."""
    return store.expire(connection, now)
