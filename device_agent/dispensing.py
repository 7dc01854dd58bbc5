"""Vends: intent committed, then the motor, then the result committed with the change of stock."""

from datetime import date
from typing import Any, Final

from device_agent import events as ev
from device_agent.effects import AskBoard, Effect, RunMotor, Show
from device_agent.faults import SLOT_CODES, TEST_AGAIN_MS, FaultsMixin
from device_agent.local_time import LocalTime
from device_agent.machine import Change as Step
from device_agent.machine import State, after
from device_agent.moment import Moment
from device_agent.outbox import Intent
from device_agent.quota import Quota
from device_agent.vending import MEANING, is_open, refusal_of_lot, refusal_of_stock
from device_agent.watch import Change
from protocol.messages import (
    TAKES_A_PACK,
    Board,
    Limits,
    Outcome,
    Refusal,
    Vend,
)

BOARD_SEQUENCE_MAX: Final = 65_535
NO_LIMITS: Final = Limits()


class DispensingMixin(FaultsMixin):
    """The part of the agent that gives out packs."""

    _board: Board
    _quota: Quota
    _key_on: bool
    _vend_due_ms: int | None
    _time: LocalTime

    def _choose_product(self, product: str, at: Moment) -> list[Effect]:
        """Prefer a slot that can give, and of those the pack that expires first."""
        today = self._today(at)
        slots = [plan for plan in self.plan.slots.values() if plan.product == product]
        if not slots:
            return self._refuse(None, product, Refusal.UNKNOWN_SLOT, at)

        def rank(slot: Any) -> tuple[bool, bool, bool, date, int]:
            book = self.book(slot.slot)
            refused = refusal_of_stock(self.plan, slot, book, today) is not None
            limited = not self._quota.allows(slot.slot, self._limits(), at.mono_ms)
            return (refused, limited, not book.queue, self.plan.expires_on(product, book), slot.slot)

        return self._choose(min(slots, key=rank).slot, at)

    def _choose(self, slot: int, at: Moment, *, order_id: str | None = None) -> list[Effect]:
        plan = self.plan.slots.get(slot)
        product = plan.product if plan else None
        test = order_id is not None or (self._key_on and self.state is State.DOOR_OPEN)
        if self.state is State.OUT_OF_SERVICE:
            return [Show(self.display())]  # not even a refusal can be kept
        refusal = self._refusal(slot, at, test=test)
        if refusal is not None:
            return self._refuse(slot, product, refusal, at, order_id)
        sequence = int(self.outbox.meta["board_sequence"]) % BOARD_SEQUENCE_MAX + 1
        intent = Intent(sequence, slot, product, self.book(slot).front(), test, order_id, None)
        self._keep(begin=intent, meta={"board_sequence": sequence} | self._trusted(at))
        self.state = after(self.state, Step.VEND_BEGAN)
        self._vend_due_ms = at.mono_ms + self.settings.vend_timeout_s * 1000
        return [RunMotor(slot, sequence)]

    def _trusted(self, at: Moment) -> dict[str, int]:
        known = self._time.known(at)
        return {} if known is None else {"trusted_wall_ms": known}

    def _limits(self) -> Any:
        return self.plan.desired.limits if self.plan.desired else NO_LIMITS

    def _refusal(self, slot: int, at: Moment, *, test: bool) -> Refusal | None:  # noqa: PLR0911 - one return a rule
        plan = self.plan.slots.get(slot)
        if plan is None:
            return Refusal.UNKNOWN_SLOT
        if self.state is State.DOOR_OPEN:
            if not test:
                return Refusal.DOOR_OPEN
        elif self.state is not State.READY:
            return Refusal.BUSY
        if test:
            if not plan.enabled:
                return Refusal.DISABLED
            return refusal_of_lot(self.plan, plan, self.book(slot), self._today(at))
        if not is_open(self.plan, self._local(at).hour):
            return Refusal.CLOSED
        if self.has_fault("VMC_OFFLINE") or self.has_fault("DROP_SENSOR_BLOCKED"):
            return Refusal.FAULT
        refusal = refusal_of_stock(self.plan, plan, self.book(slot), self._today(at))
        if refusal is None and not self._quota.allows(slot, self._limits(), at.mono_ms):
            return Refusal.LIMIT
        return refusal

    def _refuse(
        self, slot: int | None, product: str | None, refusal: Refusal, at: Moment, order_id: str | None = None
    ) -> list[Effect]:
        if slot is not None:
            outcome: dict[str, Any] = {
                "outcome": Outcome.REFUSED,
                "reason": refusal,
                "product": product,
                "order_id": order_id,
            }
            self._keep(Vend(**self._when(at), slot=slot, lot=self.book(slot).front(), **outcome))
        if order_id is not None:
            return self.order_done(order_id, ok=False, detail=f"refused: {refusal}", at=at)
        return [Show(self.display(message=f"refused:{refusal}"))]

    def _vend_answered(self, event: ev.VendEnded | ev.BoardAnswered, at: Moment) -> list[Effect]:
        """Take the board's word on a vend, told by itself or asked for."""
        if isinstance(event, ev.BoardAnswered):
            event = ev.VendEnded(event.board_sequence, event.result or self._without_answer(), None, event.life_count)
        return self._vend_ended(event, at)

    def _vend_ended(self, event: ev.VendEnded, at: Moment) -> list[Effect]:
        intent = next((i for i in self.outbox.intents if i.board_sequence == event.board_sequence), None)
        if intent is None:
            return []  # the board said it twice, or speaks of what is settled already
        outcome, refusal, fault = MEANING[event.result]
        book = self.book(intent.slot)
        if outcome is Outcome.UNVERIFIED and intent.lot is None:
            # Tried after a door session although the book is empty: the drop sensor decides.
            outcome, refusal = Outcome.REFUSED, Refusal.EMPTY
        after_book = book.less_one() if outcome in TAKES_A_PACK else book.copy()
        if intent.lot is None:
            after_book.try_once = outcome is Outcome.DELIVERED
        facts: list[Any] = [
            Vend(
                **self._when(at),
                slot=intent.slot,
                product=intent.product,
                outcome=outcome,
                reason=refusal,
                lot=intent.lot,
                board_sequence=intent.board_sequence,
                life_count=event.life_count,
                duration_ms=event.duration_ms,
                test=intent.test,
                order_id=intent.order_id,
            )
        ]
        found, meta = self._faults_of(intent.slot, fault, at, delivered=outcome is Outcome.DELIVERED)
        if fault is not None and fault in SLOT_CODES:
            after_book.blocked_by = fault
        self._keep(
            *facts, *found, slots={intent.slot: after_book}, end=intent.board_sequence, meta=meta | self._trusted(at)
        )
        if outcome in TAKES_A_PACK:
            self._quota.gave(intent.slot, at.mono_ms)
        self._vend_due_ms = None
        if self.state in {State.VENDING, State.VENDING_DOOR_OPEN}:
            self.state = after(self.state, Step.VEND_ENDED)
        effects: list[Effect] = [*self.tell_held_door(at), Show(self.display(message=f"vend:{outcome}"))]
        if intent.order_id is not None:
            effects += self.order_done(intent.order_id, ok=outcome is Outcome.DELIVERED, detail=str(outcome), at=at)
        return effects

    def _faults_of(
        self, slot: int, fault: str | None, at: Moment, *, delivered: bool
    ) -> tuple[list[Any], dict[str, Any]]:
        """What a vend says of its slot and of the drop sensor.

        The first vend after a visit is the test of what was done there: a coil that jams then was not seated.
        """
        untested = self.outbox.meta.get("untested", [])
        meta = {"untested": [other for other in untested if other != slot]} if slot in untested else {}
        if delivered:
            facts, open_faults = self.fault_facts(
                at, cleared=[*((code, slot) for code in SLOT_CODES), ("DROP_SENSOR_BLOCKED", None)]
            )
            return facts, meta | open_faults
        if fault is None:
            return [], meta
        if fault == "SLOT_JAM" and (self.has_fault("SLOT_HELIX", slot) or (meta and not self.has_fault(fault, slot))):
            fault = "SLOT_HELIX"
        facts, open_faults = self.fault_facts(at, [(fault, slot if fault in SLOT_CODES else None, "")])
        return facts, meta | open_faults

    def _ask_about(self, intent: Intent, life_count: int | None, at: Moment) -> list[Effect]:
        """What became of a vend whose result is not kept? The board knows, or its counter, or nobody does."""
        if self._board.runs_sequence_once or self._board.counts_life:
            self._vend_due_ms = at.mono_ms + self.settings.vend_timeout_s * 1000
            return [AskBoard(intent.board_sequence)]
        return self._vend_ended(ev.VendEnded(intent.board_sequence, ev.BoardResult.UNKNOWN, None, life_count), at)

    def _without_answer(self) -> ev.BoardResult:
        """The board has no stored result. One that runs a sequence once never ran this one: the pack is where it was."""
        return ev.BoardResult.NOT_RUN if self._board.runs_sequence_once else ev.BoardResult.UNKNOWN

    def _vend_overdue(self, at: Moment) -> list[Effect]:
        """No result in time: ask once, then nobody can know."""
        self._vend_due_ms = None
        if not self.outbox.intents:
            return []
        intent = self.outbox.intents[0]
        asked = self.outbox.meta.get("asked")
        if self._board.runs_sequence_once and asked != intent.board_sequence:
            self._keep(meta={"asked": intent.board_sequence})
            return self._ask_about(intent, None, at)
        self.note([Change("VMC_OFFLINE", raised=True, detail="no result of a vend")], at)
        self._test_due_ms = at.mono_ms + TEST_AGAIN_MS
        return self._vend_ended(ev.VendEnded(intent.board_sequence, ev.BoardResult.UNKNOWN), at)
