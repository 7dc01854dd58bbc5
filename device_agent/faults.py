"""Open faults: a durable set, so that each cause is told once when it begins and once when it ends, through restarts too."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from device_agent import events as ev
from device_agent.effects import Effect, SelfTest
from device_agent.machine import State
from device_agent.moment import Moment
from device_agent.ports import AgentParts
from device_agent.watch import Change, Watch
from protocol.messages import AckMessage, FaultCleared, FaultRaised

OPEN: Final = "open_faults"
NONE_OPEN: Final[dict[str, int]] = {}
OWN_TEST: Final = "own"
"""The name of a self test that no order asked for."""
TEST_AGAIN_MS: Final = 60_000
SLOT_CODES: Final = ("SLOT_JAM", "SLOT_HELIX", "SLOT_MOTOR_ABSENT")
"""What a pack that falls proves to be over."""

Raised = tuple[str, int | None, str]
Cleared = tuple[str, int | None]


def _key(code: str, slot: int | None) -> str:
    return code if slot is None else f"{code}/{slot}"


class FaultsMixin(AgentParts):
    """The part of the agent that tells what is wrong."""

    watch: Watch
    _readings: ev.SensorRead
    _test_due_ms: int | None

    def has_fault(self, code: str, slot: int | None = None) -> bool:
        """Tell whether a fault has been raised and not cleared."""
        return _key(code, slot) in self.open_faults()

    def open_faults(self) -> Mapping[str, int]:
        """When each open fault was raised, by its code, with its slot if it has one."""
        still_open: dict[str, int] = self.outbox.meta.get(OPEN) or NONE_OPEN
        return still_open

    def fault_facts(
        self, at: Moment, raised: Iterable[Raised] = (), cleared: Iterable[Cleared] = ()
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return the facts of what is new, and the memory to be kept in the same transaction."""
        now: dict[str, int] = dict(self.outbox.meta.get(OPEN, {}))
        facts: list[Any] = []
        for code, slot, detail in raised:
            if _key(code, slot) not in now:
                now[_key(code, slot)] = at.wall_ms
                facts.append(FaultRaised(**self._when(at), code=code, slot=slot, detail=detail[:200]))
        for code, slot in cleared:
            if now.pop(_key(code, slot), None) is not None:
                facts.append(FaultCleared(**self._when(at), code=code, slot=slot))
        return facts, {OPEN: now} if facts else {}

    def note(self, changes: Iterable[Change], at: Moment) -> None:
        """Keep what the watch has found."""
        for change in changes:
            raised = [(change.code, None, change.detail)] if change.raised else []
            facts, meta = self.fault_facts(at, raised, [] if change.raised else [(change.code, None)])
            if facts:
                self._keep(*facts, meta=meta)

    def tell_open_faults(self, at: Moment) -> None:
        """Tell them again in a stream that has just begun."""
        for key in self.outbox.meta.get(OPEN, {}):
            code, _, slot = key.partition("/")
            self._keep(FaultRaised(**self._when(at), code=code, slot=int(slot) if slot else None, detail="still open"))

    # ------------------------------------------------------------ what the drivers say

    def _board_fault(self, event: ev.BoardFault, at: Moment) -> list[Effect]:
        facts, meta = self.fault_facts(at, [(event.code, event.slot, event.detail)])
        if facts:
            self._keep(*facts, meta=meta)
        return []

    def _board_fault_ended(self, event: ev.BoardFaultEnded, at: Moment) -> list[Effect]:
        """A controller that answers again has to pass its own test first."""
        if event.code == "VMC_OFFLINE":
            return self._test_controller(at)
        facts, meta = self.fault_facts(at, cleared=[(event.code, event.slot)])
        if facts:
            self._keep(*facts, meta=meta)
        return []

    def _test_controller(self, at: Moment) -> list[Effect]:
        self._test_due_ms = None
        if not self.has_fault("VMC_OFFLINE"):
            return []
        self._test_due_ms = at.mono_ms + TEST_AGAIN_MS
        return [SelfTest(OWN_TEST)]

    def _controller_tested(self, at: Moment, *, ok: bool) -> None:
        """A blocked drop sensor fails the test as well, and has a fault of its own."""
        if ok or self.has_fault("DROP_SENSOR_BLOCKED"):
            self._test_due_ms = None
            self.note([Change("VMC_OFFLINE", raised=False)], at)

    # ------------------------------------------------------------ what the watch sees

    def _sensors_read(self, event: ev.SensorRead, at: Moment) -> list[Effect]:
        self._readings = event
        full = self.outbox.pending * 100 // self.settings.pending_facts_max
        changes = self.watch.read(event, max(full, event.storage_pct or 0), at.mono_ms)
        # Out of service, the fault of the storage is over when it can be written to again, and not before.
        if changes and self.state is not State.OUT_OF_SERVICE:
            self.note(changes, at)
        return []

    def _compare_clock(self, answer: AckMessage, at: Moment) -> None:
        if answer.sent_at_ms is not None and at.trusted:
            changes = self.watch.clock_compared(answer.sent_at_ms, at.wall_ms, answer.server_at_ms, at.mono_ms)
            self.note(changes, at)
