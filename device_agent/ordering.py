"""Orders: bound to a stream and a session, alive on monotonic time, committed before they act, run at most once."""

from typing import Any, assert_never

from device_agent.effects import ClearJam as AskClearJam
from device_agent.effects import Effect, PulseLock, Reconnect, Restart
from device_agent.effects import SelfTest as AskSelfTest
from device_agent.faults import SLOT_CODES, FaultsMixin
from device_agent.moment import Moment
from device_agent.outbox import SlotBook
from protocol.codec import decode_order
from protocol.messages import (
    ClearJam,
    NewStream,
    Order,
    OrderOutcome,
    OrderResult,
    Reboot,
    SelfTest,
    TestVend,
    Unlock,
)


class OrdersMixin(FaultsMixin):
    """The part of the agent that takes orders."""

    _unlocked_ms: int | None
    _unlock_order: str | None

    def order_arrived(self, payload: bytes, at: Moment) -> list[Effect]:
        """Take an order: a repeat does nothing, one too late is expired, all others are committed and then done."""
        order = decode_order(payload)
        if self.outbox.order(order.order_id) is not None:
            return []  # its answer is a fact already, or will be
        refusal = self._refusal_of(order, at)
        if refusal is not None:
            self._answer(order.order_id, order.kind, *refusal, at)
            return []
        slot = str(order.slot) if isinstance(order, ClearJam) else ""
        self._keep(order=(order.order_id, order.kind, None, slot))
        return self._act(order, at)

    def _refusal_of(self, order: Order, at: Moment) -> tuple[OrderOutcome, str] | None:
        if order.stream_id != self.outbox.stream_id:
            return OrderOutcome.REFUSED, f"stream_id {order.stream_id[:8]}: expected {self.outbox.stream_id[:8]}"
        if isinstance(order, NewStream):
            # The way out of a fork: what a forked machine answers reaches nobody, and an old card counts its sessions from an old number.
            return None
        session = int(self.outbox.meta.get("session", 0))
        if order.session != session:
            return OrderOutcome.REFUSED, f"session {order.session}: expected {session}"
        age_ms = at.mono_ms - self.session_began_ms
        if age_ms > order.expires_after_ms:
            return OrderOutcome.EXPIRED, f"{age_ms} ms into the session: expected at most {order.expires_after_ms}"
        return None

    def _act(self, order: Order, at: Moment) -> list[Effect]:
        match order:
            case Unlock():
                self._unlocked_ms, self._unlock_order = at.mono_ms, order.order_id
                self._answer(order.order_id, order.kind, OrderOutcome.DONE, "lock pulsed", at)
                self.note(self.watch.lock_pulsed(at.mono_ms), at)
                return [PulseLock()]
            case TestVend():
                return self._choose(order.slot, at, order_id=order.order_id)
            case ClearJam():
                return [AskClearJam(order.order_id, order.slot)]
            case SelfTest():
                return [AskSelfTest(order.order_id)]
            case Reboot():
                return [Restart(order.order_id)]
            case NewStream():
                self.outbox.begin_stream()
                self.sender.stream_began()
                self._keep(self.started(at, "new_stream"))
                self.tell_open_door(at)
                self.tell_open_faults(at)
                self._answer(order.order_id, order.kind, OrderOutcome.DONE, "a new stream began", at)
                # What was announced, and the will that lies with the broker, name the old one: orders would go there.
                return [Reconnect("a new stream began")]
            case _:
                assert_never(order)

    def order_done(self, order_id: str, *, ok: bool, detail: str, at: Moment) -> list[Effect]:
        """Answer an order that the board has carried out, once."""
        begun = self.outbox.order(order_id)
        if begun is None or begun[1] is not None:
            return []
        outcome = OrderOutcome.DONE if ok else OrderOutcome.FAILED
        if begun[0] == "clear_jam" and ok:
            self._unblock(int(begun[2]), at)
        self._answer(order_id, begun[0], outcome, detail, at)
        return []

    def _unblock(self, slot: int, at: Moment) -> None:
        facts, meta = self.fault_facts(at, cleared=[(code, slot) for code in SLOT_CODES])
        book = self.book(slot)
        self._keep(*facts, slots={slot: SlotBook(list(book.queue), None, book.try_once)}, meta=meta)

    def _answer(self, order_id: str, kind: str, outcome: OrderOutcome, detail: str, at: Moment) -> None:
        fact = OrderResult(**self._when(at), order_id=order_id, outcome=outcome, detail=detail[:200])
        self._keep(fact, order=(order_id, kind, str(outcome), detail))

    def _finish_interrupted_orders(self, at: Moment) -> None:
        """After a start: an ordered restart is done by it; a vend's order is answered with its vend; others were cut off."""
        asked = {intent.order_id for intent in self.outbox.intents}
        for order_id, kind in self.outbox.open_orders():
            if order_id in asked:
                continue
            outcome = OrderOutcome.DONE if kind == "reboot" else OrderOutcome.FAILED
            detail = "restarted" if kind == "reboot" else "interrupted by a restart"
            self._answer(order_id, kind, outcome, detail, at)

    def _choose(self, slot: int, at: Moment, *, order_id: str | None = None) -> list[Effect]:
        raise NotImplementedError

    def tell_open_door(self, at: Moment) -> None:
        """A door that is open while a stream begins is open in that one too."""
        raise NotImplementedError

    def started(self, at: Moment, reason: Any, life_count: int | None = None) -> Any:
        """The first word of a stream."""
        raise NotImplementedError
