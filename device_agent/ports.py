"""What the parts of the agent share."""

from collections.abc import Iterable
from datetime import date, datetime
from typing import Any

from device_agent.effects import Display, Effect
from device_agent.events import BoardAnswered, VendEnded
from device_agent.machine import State
from device_agent.moment import Moment
from device_agent.outbox import Intent, Outbox, SlotBook
from device_agent.sending import Sender
from device_agent.settings import AgentSettings
from device_agent.vending import Plan


class AgentParts:
    """The members of the agent that its parts use; the agent itself fills them."""

    settings: AgentSettings
    outbox: Outbox
    sender: Sender
    plan: Plan
    session_began_ms: int
    state: State
    _door_open: bool

    def _when(self, at: Moment) -> dict[str, Any]:
        raise NotImplementedError

    def _keep(self, *facts: Any, **changes: Any) -> None:
        raise NotImplementedError

    def _local(self, at: Moment) -> datetime:
        raise NotImplementedError

    def _today(self, at: Moment) -> date:
        raise NotImplementedError

    def has_fault(self, code: str, slot: int | None = None) -> bool:
        """Tell whether a fault has been raised and not cleared."""
        raise NotImplementedError

    def fault_facts(
        self,
        at: Moment,
        raised: Iterable[tuple[str, int | None, str]] = (),
        cleared: Iterable[tuple[str, int | None]] = (),
    ) -> tuple[list[Any], dict[str, Any]]:
        """The facts of faults that begin and end, and the memory to be kept with them."""
        raise NotImplementedError

    def tell_held_door(self, at: Moment) -> list[Effect]:
        """Tell of a door that opened while a vend was running."""
        raise NotImplementedError

    def order_done(self, order_id: str, *, ok: bool, detail: str, at: Moment) -> list[Effect]:
        """Answer an order that was carried out."""
        raise NotImplementedError

    def book(self, slot: int) -> SlotBook:
        """What the machine believes of a slot."""
        raise NotImplementedError

    def display(self, message: str | None = None) -> Display:
        """What the screen shows."""
        raise NotImplementedError

    def _vend_answered(self, event: VendEnded | BoardAnswered, at: Moment) -> list[Effect]:
        raise NotImplementedError

    def _ask_about(self, intent: Intent, life_count: int | None, at: Moment) -> list[Effect]:
        raise NotImplementedError

    def _door_opened(self, at: Moment, life_count: int | None) -> list[Effect]:
        raise NotImplementedError

    def _close_session(self, at: Moment, life_count: int | None) -> None:
        raise NotImplementedError

    def _begin(self, at: Moment) -> list[Effect]:
        raise NotImplementedError

    def _link_came_up(self, at: Moment) -> list[Effect]:
        raise NotImplementedError
