"""Door sessions: while the door is open the machine serves nobody, and everything done has one place in the stream."""

import random
from typing import Final, NamedTuple

from device_agent.effects import Effect, Show
from device_agent.faults import FaultsMixin
from device_agent.local_time import LocalTime
from device_agent.machine import Change as Step
from device_agent.machine import State, after
from device_agent.moment import Moment
from device_agent.outbox import SlotBook
from protocol.messages import DoorClosed, DoorOpened

AUTHORISED_MS: Final = 120_000
"""An unlock order authorises a door that opens this soon after it."""


class Opening(NamedTuple):
    """How a door was opened."""

    authorised: bool
    order_id: str | None
    life_count: int | None


class DoorMixin(FaultsMixin):
    """The part of the agent that watches the door."""

    _randomness: random.Random
    _time: LocalTime
    _key_on: bool
    _unlocked_ms: int | None
    _unlock_order: str | None
    _held_opening: Opening | None

    def _door_opened(self, at: Moment, life_count: int | None) -> list[Effect]:
        if self._door_open:
            return []
        self._door_open = True
        if self.state is State.OUT_OF_SERVICE:
            return []  # told when the storage is back
        recently = self._unlocked_ms is not None and at.mono_ms - self._unlocked_ms <= AUTHORISED_MS
        opening = Opening(recently or self._key_on, self._unlock_order if recently else None, life_count)
        if self.state is State.VENDING:
            # The pack that falls now left the coil before anybody counts: its fact comes first.
            self._held_opening = opening
        else:
            self._begin_session(opening, at)
        self.state = after(self.state, Step.DOOR_OPENED)
        return [Show(self.display())]

    def _begin_session(self, opening: Opening, at: Moment) -> None:
        self._held_opening = None
        if not self.outbox.meta.get("door_session"):
            session = f"{self._randomness.randrange(1_000_000):06d}"
            raised = [] if opening.authorised else [("DOOR_OPEN_UNAUTH", None, "")]
            facts, faults = self.fault_facts(at, raised)
            opened = DoorOpened(
                **self._when(at),
                session=session,
                authorised=opening.authorised,
                order_id=opening.order_id,
                life_count=opening.life_count,
            )
            meta = {
                "door_session": session,
                "door_opened_ms": self._time.now_ms(at),
                "door_unauthorised": not opening.authorised,
            }
            self._keep(opened, *facts, meta=meta | faults)
        in_visit = not self.outbox.meta.get("door_unauthorised")
        self.note(self.watch.door(at.mono_ms, is_open=True, in_visit=in_visit), at)

    def tell_open_door(self, at: Moment) -> None:
        """Begin a session that is not over in a new stream as well: what is entered in it belongs there now."""
        session, meta = self.outbox.meta.get("door_session"), self.outbox.meta
        if session:
            authorised = not meta.get("door_unauthorised")
            self._keep(DoorOpened(**self._when(at), session=session, authorised=authorised))

    def tell_held_door(self, at: Moment) -> list[Effect]:
        """Tell of a door that opened while a vend was running, now that its result is kept."""
        if self._held_opening is None:
            return []
        self._begin_session(self._held_opening, at)
        return [Show(self.display())]

    def _door_closed(self, at: Moment, life_count: int | None) -> list[Effect]:
        if not self._door_open:
            return []
        self._door_open = False
        if self.state is State.OUT_OF_SERVICE:
            return []
        self.tell_held_door(at)
        self._close_session(at, life_count)
        self.state = after(self.state, Step.DOOR_CLOSED)
        return [Show(self.display())]

    def _close_session(self, at: Moment, life_count: int | None) -> None:
        """End the session. What was filled in it may not be known yet: an empty slot is tried again, a jam too."""
        meta = self.outbox.meta
        session = meta.get("door_session")
        if not session:
            return
        now_ms = self._time.now_ms(at)
        open_ms = max(0, now_ms - int(meta.get("door_opened_ms", now_ms)))
        closed = DoorClosed(**self._when(at), session=session, open_ms=open_ms, life_count=life_count)
        facts, faults = self.fault_facts(
            at, cleared=self._ended_by_a_visit(unauthorised=bool(meta.get("door_unauthorised")))
        )
        slots = {slot: SlotBook(list(self.book(slot).queue), None, try_once=True) for slot in self.plan.slots}
        session_over = {"door_session": None, "door_unauthorised": False, "untested": sorted(slots)}
        self._keep(closed, *facts, slots=slots, meta=session_over | faults)
        self.note(self.watch.door(at.mono_ms, is_open=False, in_visit=False), at)

    def _ended_by_a_visit(self, *, unauthorised: bool) -> list[tuple[str, int | None]]:
        """What somebody with the right to be here has seen and put right."""
        if unauthorised:
            return []
        over = ["DOOR_OPEN_UNAUTH", "STORAGE_DAMAGED"]
        over += [] if self.watch.tampered else ["VANDALISM"]
        over += [] if self.watch.curtain_is_blocked else ["DROP_SENSOR_BLOCKED"]
        return [(code, None) for code in over]
