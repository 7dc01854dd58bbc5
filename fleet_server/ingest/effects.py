"""What each kind of fact means beyond being stored. Pure; one `match`, and a kind without a case fails the type check."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import assert_never

from fleet_server.faults.store import NO_SLOT, FaultChange
from fleet_server.ledger.entries import anchored_fact
from fleet_server.ledger.fold import Anchored
from fleet_server.ledger.movements import DoorOpening
from protocol.messages import (
    ClockChanged,
    ConfigApplied,
    Count,
    DoorClosed,
    DoorOpened,
    Fact,
    FaultCleared,
    FaultRaised,
    OrderResult,
    Refill,
    Started,
    StockLevel,
    Vend,
)
from protocol.topics import Channel

DOOR_OPEN_UNAUTH = "DOOR_OPEN_UNAUTH"


@dataclass(frozen=True, slots=True)
class Answer:
    """A machine's answer to something that was sent to it."""

    dispenser_id: str
    channel: Channel
    key: str
    outcome: str
    detail: str


@dataclass
class Consequences:
    """What the facts of one transaction mean, in their order."""

    entries: list[tuple[tuple[str, int], Anchored]] = field(default_factory=list)
    faults: list[FaultChange] = field(default_factory=list)
    doors_opened: list[DoorOpening] = field(default_factory=list)
    doors_closed: list[DoorOpening] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)


def consequences(into: Consequences, dispenser_id: str, stream_no: int, seq: int, fact: Fact, at: datetime) -> None:
    """Add what one fact means."""
    match fact:
        case Vend() | Count() | Refill() | StockLevel():
            into.entries += anchored_fact(dispenser_id, stream_no, seq, fact, at)
        case DoorOpened():
            into.doors_opened.append(DoorOpening(dispenser_id, stream_no, seq, fact.session, at))
        case DoorClosed():
            into.doors_closed.append(DoorOpening(dispenser_id, stream_no, seq, fact.session, at))
        case FaultRaised() | FaultCleared():
            opened = isinstance(fact, FaultRaised)
            slot = fact.slot or NO_SLOT
            into.faults.append(FaultChange(dispenser_id, fact.code, opened, at, slot, fact.detail, "machine"))
        case OrderResult():
            answer = Answer(dispenser_id, Channel.ORDERS, fact.order_id, fact.outcome, fact.detail)
            into.answers.append(answer)
        case ConfigApplied():
            channel = Channel.DESIRED if fact.what == "desired" else Channel.BOOKS
            outcome = "applied" if fact.applied else "refused"
            into.answers.append(Answer(dispenser_id, channel, str(fact.version), outcome, fact.detail))
        case Started() | ClockChanged():
            pass  # stored and shown; they change nothing of the server's
        case _:
            assert_never(fact)
