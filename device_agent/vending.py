"""May this slot vend now, and what does the board's result mean? Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date

from device_agent.events import BoardResult
from device_agent.outbox import SlotBook
from protocol.messages import Desired, LotInfo, Outcome, Refusal, SlotPlan


@dataclass(slots=True)
class Plan:
    """The desired state in the form in which decisions need it."""

    desired: Desired | None = None
    slots: dict[int, SlotPlan] = field(default_factory=dict)
    lots: dict[tuple[str, str], LotInfo] = field(default_factory=dict)

    @classmethod
    def of(cls, desired: Desired | None) -> "Plan":
        """Index a desired state."""
        if desired is None:
            return cls()
        slots = {plan.slot: plan for plan in desired.planogram}
        return cls(desired, slots, {(lot.product, lot.lot): lot for lot in desired.lots})

    def expires_on(self, product: str, book: SlotBook) -> date:
        """The expiry of the next pack; unknown lots come last."""
        lot = self.lots.get((product, book.front() or ""))
        return lot.expires_on if lot else date.max


def refusal_of_stock(plan: Plan, slot: SlotPlan, book: SlotBook, today: date) -> Refusal | None:
    """Tell why the slot itself cannot give a pack, or None. Expired stock is never dispensed, nor a lot nobody knows."""
    if not slot.enabled:
        return Refusal.DISABLED
    if book.blocked_by is not None:
        return Refusal.FAULT
    if book.front() is None:
        return None if book.try_once else Refusal.EMPTY
    return refusal_of_lot(plan, slot, book, today)


def refusal_of_lot(plan: Plan, slot: SlotPlan, book: SlotBook, today: date) -> Refusal | None:
    """Tell why the next pack may not come out whoever asks, not even as a test, or None."""
    lot_code = book.front()
    if lot_code is None:
        return None
    lot = plan.lots.get((slot.product, lot_code))
    if lot is None or lot.blocked:
        return Refusal.BLOCKED_LOT
    return Refusal.EXPIRED if lot.expires_on <= today else None


def is_open(plan: Plan, hour: int) -> bool:
    """Tell whether the site is open at this local hour."""
    if plan.desired is None:
        return True
    hours = plan.desired.opening_hours
    return hours.opens_hour <= hour < hours.closes_hour


MEANING: Mapping[BoardResult, tuple[Outcome, Refusal | None, str | None]] = {
    BoardResult.DROPPED: (Outcome.DELIVERED, None, None),
    BoardResult.NO_DROP: (Outcome.UNVERIFIED, None, None),
    BoardResult.JAM: (Outcome.JAM, None, "SLOT_JAM"),
    BoardResult.MOTOR_ABSENT: (Outcome.MOTOR_FAULT, None, "SLOT_MOTOR_ABSENT"),
    BoardResult.OVER_CURRENT: (Outcome.JAM, None, "SLOT_JAM"),
    BoardResult.CURTAIN_BLOCKED: (Outcome.REFUSED, Refusal.FAULT, "DROP_SENSOR_BLOCKED"),
    BoardResult.DOOR_OPEN: (Outcome.REFUSED, Refusal.DOOR_OPEN, None),
    BoardResult.NOT_RUN: (Outcome.REFUSED, Refusal.FAULT, None),
    BoardResult.UNKNOWN: (Outcome.IN_DOUBT, None, None),
}
"""Outcome, refusal, and the fault that begins, of each result of the board."""
