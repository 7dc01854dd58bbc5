"""Composes what is sent to machines from rows of the outgoing table. Pure."""

from datetime import datetime, timedelta
from typing import Any

from pydantic import TypeAdapter

from fleet_server.devices.machines import Outgoing
from protocol.messages import Books, Desired, Order
from protocol.topics import Channel

_ORDER: TypeAdapter[Any] = TypeAdapter(Order)


def compose(message: Outgoing, stream_id: str, session: int, since: datetime) -> Order | Desired | Books:
    """Return the message for the session that began at `since`; an order's life is counted from there."""
    match message.channel:
        case Channel.DESIRED:
            # The payload has been through JSON, where a date is a string.
            return Desired.model_validate(message.payload, strict=False)
        case Channel.BOOKS:
            return Books.model_validate(message.payload, strict=False)
        case Channel.ORDERS:
            expires_at = message.expires_at or message.created_at + timedelta(minutes=2)
            order: Order = _ORDER.validate_python(
                message.payload
                | {
                    "order_id": message.key,
                    "stream_id": stream_id,
                    "session": session,
                    "expires_after_ms": max(0, int((expires_at - since).total_seconds() * 1000)),
                }
            )
            return order
        case channel:
            raise ValueError(f"channel = {channel!r}: expected one that the server publishes")
