"""The life of the machine as one table; an event that is not listed for a state is an error."""

from enum import StrEnum
from typing import Final


class State(StrEnum):
    """What the machine is doing."""

    STARTING = "starting"
    READY = "ready"
    VENDING = "vending"
    DOOR_OPEN = "door_open"
    VENDING_DOOR_OPEN = "vending_door_open"
    OUT_OF_SERVICE = "out_of_service"


class Change(StrEnum):
    """What can change the state."""

    RECOVERED = "recovered"
    VEND_BEGAN = "vend_began"
    VEND_ENDED = "vend_ended"
    DOOR_OPENED = "door_opened"
    DOOR_CLOSED = "door_closed"
    STORAGE_FAILED = "storage_failed"
    STORAGE_BACK = "storage_back"


TRANSITIONS: Final[dict[tuple[State, Change], State]] = {
    (State.STARTING, Change.RECOVERED): State.READY,
    (State.STARTING, Change.STORAGE_FAILED): State.OUT_OF_SERVICE,
    (State.READY, Change.VEND_BEGAN): State.VENDING,  # also after a start, when an open intent is asked of the board
    (State.READY, Change.DOOR_OPENED): State.DOOR_OPEN,
    (State.READY, Change.STORAGE_FAILED): State.OUT_OF_SERVICE,
    (State.VENDING, Change.VEND_ENDED): State.READY,
    (State.VENDING, Change.DOOR_OPENED): State.VENDING_DOOR_OPEN,
    (State.VENDING, Change.STORAGE_FAILED): State.OUT_OF_SERVICE,
    (State.DOOR_OPEN, Change.DOOR_CLOSED): State.READY,
    (State.DOOR_OPEN, Change.VEND_BEGAN): State.VENDING_DOOR_OPEN,  # a test vend under the service key
    (State.DOOR_OPEN, Change.STORAGE_FAILED): State.OUT_OF_SERVICE,
    (State.VENDING_DOOR_OPEN, Change.VEND_ENDED): State.DOOR_OPEN,
    (State.VENDING_DOOR_OPEN, Change.DOOR_CLOSED): State.VENDING,
    (State.VENDING_DOOR_OPEN, Change.STORAGE_FAILED): State.OUT_OF_SERVICE,
    (State.OUT_OF_SERVICE, Change.STORAGE_FAILED): State.OUT_OF_SERVICE,
    (State.OUT_OF_SERVICE, Change.STORAGE_BACK): State.READY,
}


class UnlistedChangeError(RuntimeError):
    """A change that the table does not know in this state: a defect of the agent."""


def after(state: State, change: Change) -> State:
    """Return the next state; raises UnlistedChangeError."""
    try:
        return TRANSITIONS[state, change]
    except KeyError:
        raise UnlistedChangeError(f"state {state}: {change} is not listed") from None
