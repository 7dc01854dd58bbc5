"""Keeping: what cannot be committed is not done. Better no pack than one that nobody counts."""

from typing import Any, Final

from device_agent import events as ev
from device_agent.effects import Effect, Show
from device_agent.machine import Change as Step
from device_agent.machine import after
from device_agent.moment import Moment
from device_agent.outbox import Intent, OutboxDamagedError, OutboxError
from device_agent.ports import AgentParts
from device_agent.vending import Plan
from protocol.messages import Desired

STORAGE_RETRY_MS: Final = 30_000
TOLD: Final = "storage_told"
"""Whether STORAGE_FULL was told because nothing could be written; the watch tells it as well, for another cause."""


class StorageMixin(AgentParts):
    """The part of the agent that leaves the service when storage fails, and comes back."""

    _storage_due_ms: int | None = None
    # The board's word on a vend that could not be kept.
    _unkept: ev.VendEnded | ev.BoardAnswered | None = None
    _begun = False
    # A connection that came up while its session could not be noted.
    _link_waits = False

    def _keep(self, *facts: Any, **changes: Any) -> None:
        """Commit, or be out of service."""
        try:
            self.outbox.record(*facts, **changes)
        except OutboxDamagedError:
            raise
        except OutboxError:
            self._leave_service()
            # What has happened already may use the room set aside; nothing new begins.
            if "end" not in changes or self.outbox.unsure or not self.outbox.reserve.give_up():
                raise
            self.outbox.record(*facts, **changes)

    def _leave_service(self) -> None:
        self.state = after(self.state, Step.STORAGE_FAILED)
        self._storage_due_ms = self._storage_due_ms or 0

    def _storage_failed(self, error: OutboxError, at: Moment) -> list[Effect]:
        """Be out of service, say so if that can still be written down, and try again in a while."""
        if isinstance(error, OutboxDamagedError):
            raise error
        self._leave_service()
        if self._storage_due_ms is None or self._storage_due_ms <= at.mono_ms:
            self._storage_due_ms = at.mono_ms + STORAGE_RETRY_MS
        if not self.outbox.meta.get(TOLD) and not self.outbox.unsure:
            self.outbox.reserve.give_up()
            self._tell_storage(error, at)
        return [Show(self.display())]

    def _tell_storage(self, error: OutboxError | None, at: Moment) -> None:
        detail = "out of service until it could write again" if error is None else f"out of service: {error}"
        facts, meta = self.fault_facts(at, [("STORAGE_FULL", None, detail)])
        try:
            self.outbox.record(*facts, meta=meta | {TOLD: True})
        except OutboxError as again:
            if error is None or isinstance(again, OutboxDamagedError):
                raise
            # It is told when it is over.

    def _try_storage(self, at: Moment) -> list[Effect]:
        """Come back into service, with the room set aside again; raises OutboxError while that cannot be."""
        if self.outbox.unsure:
            self.outbox.recover()
        self.outbox.reserve.keep()
        if not self.outbox.meta.get(TOLD):
            self._tell_storage(None, at)
        self._storage_is_over(at)
        self._storage_due_ms = None
        self.state = after(self.state, Step.STORAGE_BACK)
        self.plan = planned(self.outbox.meta.get("desired"))
        return self._go_on(None, at) if self._begun else self._begin(at)

    def _storage_is_over(self, at: Moment) -> None:
        """Say so, if it was told; perhaps by a former run that did not live to see the end."""
        if self.outbox.meta.get(TOLD):
            facts, meta = self.fault_facts(at, cleared=[("STORAGE_FULL", None)])
            self.outbox.record(*facts, meta=meta | {TOLD: False})

    def _go_on(self, life_count: int | None, at: Moment) -> list[Effect]:
        """Settle what was left open: a vend without a result, a door that opened or closed meanwhile."""
        effects: list[Effect] = []
        if self.outbox.intents:
            self.state = after(self.state, Step.VEND_BEGAN)
            effects += self._settle(self.outbox.intents[0], life_count, at)
        if self._door_open:
            self._door_open = False
            effects += self._door_opened(at, life_count)
        elif self.outbox.meta.get("door_session"):
            self._close_session(at, life_count)
        if self._link_waits:
            effects += self._link_came_up(at)
        return [Show(self.display()), *effects]  # first: what the board answers changes the screen again

    def _settle(self, intent: Intent, life_count: int | None, at: Moment) -> list[Effect]:
        heard, self._unkept = self._unkept, None
        if heard is not None and heard.board_sequence == intent.board_sequence:
            return self._vend_answered(heard, at)
        return self._ask_about(intent, life_count, at)


def planned(desired: Any) -> Plan:
    """The plan of a desired state that was kept."""
    return Plan.of(None if desired is None else Desired.model_validate(desired, strict=False))
