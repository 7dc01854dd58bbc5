"""What each kind of fact means beyond being stored. Pure; one `match`, and a kind without a case fails the type check."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import assert_never

from fleet_server.devices.machines import Answer
from fleet_server.faults.store import ALL_OF_THE_MACHINE, NO_SLOT, FaultChange
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


@dataclass
class Consequences:
    """What the facts of one transaction mean, in their order."""

    entries: dict[tuple[str, int], list[Anchored]] = field(default_factory=lambda: defaultdict(list))
    faults: list[FaultChange] = field(default_factory=list)
    doors_opened: list[DoorOpening] = field(default_factory=list)
    doors_closed: list[DoorOpening] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    desired_known: dict[str, int] = field(default_factory=dict)
    """By machine: the version of its desired state that it started with, 0 for none."""

    def book(self, entries: Iterable[tuple[tuple[str, int], Anchored]]) -> None:
        """Add entries of slots."""
        for key, entry in entries:
            self.entries[key].append(entry)


def consequences(
    into: Consequences, place: tuple[str, int, int], fact: Fact, at: datetime, received_at: datetime
) -> None:
    """Add what the fact at `place` (dispenser_id, stream_no, seq) means."""
    dispenser_id, stream_no, seq = place
    match fact:
        case Vend() | Count() | Refill() | StockLevel():
            into.book(anchored_fact(dispenser_id, stream_no, seq, fact, at, received_at))
        case DoorOpened():
            into.doors_opened.append(DoorOpening(dispenser_id, stream_no, seq, fact.session, at, received_at))
        case DoorClosed():
            into.doors_closed.append(DoorOpening(dispenser_id, stream_no, seq, fact.session, at, received_at))
        case FaultRaised() | FaultCleared():
            opened = isinstance(fact, FaultRaised)
            slot = fact.slot or NO_SLOT
            into.faults.append(FaultChange(dispenser_id, fact.code, opened, at, slot, fact.detail, "machine"))
        case OrderResult():
            answer = Answer(dispenser_id, Channel.ORDERS, fact.order_id, fact.outcome, fact.detail, received_at)
            into.answers.append(answer)
        case ConfigApplied():
            channel = Channel.DESIRED if fact.what == "desired" else Channel.BOOKS
            outcome = "applied" if fact.applied else "refused"
            into.answers.append(Answer(dispenser_id, channel, str(fact.version), outcome, fact.detail, received_at))
        case Started():
            into.desired_known[dispenser_id] = fact.desired_version or 0
            if stream_no > 1 and seq == 1:
                # A new card knows nothing of what the former one had told; what still holds is told again.
                into.faults.append(FaultChange(dispenser_id, ALL_OF_THE_MACHINE, opened=False, at=at))
        case ClockChanged():
            pass  # stored and shown; it changes nothing of the server's
        case _:
            assert_never(fact)
