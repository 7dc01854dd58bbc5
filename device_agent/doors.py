"""Door sessions: while the door is open the machine serves nobody, and everything done has one place in the stream."""

import random
from typing import Any, Final

from device_agent.effects import Effect, Show
from device_agent.machine import Change, State, after
from device_agent.moment import Moment
from device_agent.outbox import SlotBook
from device_agent.ports import AgentParts
from protocol.messages import DoorClosed, DoorOpened, FaultCleared, FaultRaised

AUTHORISED_MS: Final = 120_000
"""An unlock order authorises a door that opens this soon after it."""


class DoorMixin(AgentParts):
    """The part of the agent that watches the door."""

    _randomness: random.Random
    _door_open: bool
    _key_on: bool
    _unlocked_ms: int | None
    _unlock_order: str | None

    def _door_opened(self, at: Moment, life_count: int | None) -> list[Effect]:
        if self._door_open:
            return []
        self._door_open = True
        if self.state is State.OUT_OF_SERVICE:
            return []  # told when the storage is back
        recently = self._unlocked_ms is not None and at.mono_ms - self._unlocked_ms <= AUTHORISED_MS
        authorised = recently or self._key_on
        session = self.outbox.meta.get("door_session")
        if not session:
            session = f"{self._randomness.randrange(1_000_000):06d}"
            facts: list[Any] = [
                DoorOpened(
                    **self._when(at),
                    session=session,
                    authorised=authorised,
                    order_id=self._unlock_order if recently else None,
                    life_count=life_count,
                )
            ]
            if not authorised:
                facts.append(FaultRaised(**self._when(at), code="DOOR_OPEN_UNAUTH"))
            meta = {"door_session": session, "door_opened_ms": at.wall_ms, "door_unauthorised": not authorised}
            self._keep(*facts, meta=meta)
        self.state = after(self.state, Change.DOOR_OPENED)
        return [Show(self.display())]

    def _door_closed(self, at: Moment, life_count: int | None) -> list[Effect]:
        if not self._door_open:
            return []
        self._door_open = False
        if self.state is State.OUT_OF_SERVICE:
            return []
        self._close_session(at, life_count)
        self.state = after(self.state, Change.DOOR_CLOSED)
        return [Show(self.display())]

    def _close_session(self, at: Moment, life_count: int | None) -> None:
        """End the session. What was filled in it may not be known yet: an empty slot is tried again, a jam too."""
        meta = self.outbox.meta
        session = meta.get("door_session")
        if not session:
            return
        open_ms = max(0, at.wall_ms - int(meta.get("door_opened_ms", at.wall_ms)))
        facts: list[Any] = [DoorClosed(**self._when(at), session=session, open_ms=open_ms, life_count=life_count)]
        if meta.get("door_unauthorised"):
            facts.append(FaultCleared(**self._when(at), code="DOOR_OPEN_UNAUTH"))
        slots = {slot: SlotBook(list(self.book(slot).queue), None, try_once=True) for slot in self.plan.slots}
        self._keep(*facts, slots=slots, meta={"door_session": None, "door_unauthorised": False})
