"""Movements: units between two accounts, for a reason, by an actor. Append-only; a mistake is reversed."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from fleet_server.ledger.fold import Anchor


class Verdict(StrEnum):
    """What became of something posted: the same id with other content is conflicting, never overwritten."""

    BOOKED = "booked"
    WAITING = "waiting"
    REPEATED = "repeated"
    CONFLICTING = "conflicting"


class Movement(NamedTuple):
    """One row of the ledger. `id` derives from its cause; slot and anchor are set where the fold of a slot made it."""

    place: str
    id: str
    source: str
    target: str
    product: str
    lot: str
    units: int
    reason: str
    actor: str
    cause: str
    at: datetime
    booked_at: datetime
    slot: int | None = None
    anchor: Anchor | None = None

    @property
    def number(self) -> int:
        """Its place among the movements of its cause: the last part of its id."""
        return int(self.id.rpartition("#")[2])


@dataclass(frozen=True, slots=True)
class DoorOpening:
    """A door session that begins at fact `seq` of a stream."""

    dispenser_id: str
    stream_no: int
    seq: int
    session: str
    at: datetime
    received_at: datetime


@dataclass(frozen=True, slots=True)
class DoorSession:
    """A door session: while it lasts the machine serves nobody, so it is one exact place in the machine's history."""

    dispenser_id: str
    stream_no: int
    opened_seq: int
    session: str
    opened_at: datetime
    closed_seq: int | None
    closed_at: datetime | None
