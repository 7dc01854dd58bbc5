"""The life of a work order and of its stops, as tables; a change that is not listed is refused."""

from enum import StrEnum
from typing import Final

from fleet_server.errors import ConflictError


class OrderState(StrEnum):
    """Where a work order is."""

    RELEASED = "released"
    PICKED = "picked"
    CLOSED = "closed"
    CANCELLED = "cancelled"


class StopState(StrEnum):
    """Where a visit is."""

    PLANNED = "planned"
    ARRIVED = "arrived"
    CLOSED = "closed"
    SKIPPED = "skipped"


OPEN_ORDERS: Final = frozenset({OrderState.RELEASED, OrderState.PICKED})
"""A work order that is still carried out."""

OPEN_STOPS: Final = frozenset({StopState.PLANNED, StopState.ARRIVED})
"""A stop at which something is still to be done."""

ORDER_CHANGES: Final = {
    ("pick", OrderState.RELEASED): OrderState.PICKED,
    ("return", OrderState.PICKED): OrderState.CLOSED,
    ("cancel", OrderState.RELEASED): OrderState.CANCELLED,
}

STOP_CHANGES: Final = {
    ("arrive", StopState.PLANNED): StopState.ARRIVED,
    ("arrive", StopState.ARRIVED): StopState.ARRIVED,
    ("close", StopState.ARRIVED): StopState.CLOSED,
    ("close", StopState.CLOSED): StopState.CLOSED,
    ("skip", StopState.PLANNED): StopState.SKIPPED,
    ("skip", StopState.ARRIVED): StopState.SKIPPED,
    ("skip", StopState.SKIPPED): StopState.SKIPPED,
}


def change_order(state: str, what: str) -> OrderState:
    """Return the next state of a work order; raises ConflictError."""
    try:
        return ORDER_CHANGES[what, OrderState(state)]
    except KeyError:
        raise ConflictError("state", state, f"a work order that can {what}") from None


def change_stop(state: str, what: str) -> StopState:
    """Return the next state of a stop; raises ConflictError."""
    try:
        return STOP_CHANGES[what, StopState(state)]
    except KeyError:
        raise ConflictError("state", state, f"a visit that can {what}") from None
