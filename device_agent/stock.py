"""What a machine believes of its slots, and the vend it has begun."""

from dataclasses import dataclass, field

from pydantic_core import from_json, to_json


@dataclass(frozen=True, slots=True)
class Intent:
    """A vend that was begun: committed before the motor turns. `life_count` is the board's count before it."""

    board_sequence: int
    slot: int
    product: str | None
    lot: str | None
    test: bool = False
    order_id: str | None = None
    life_count: int | None = None

    def to_json(self) -> str:
        """The form in which an intent is kept."""
        return to_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "Intent":
        """Read the form in which an intent is kept."""
        return cls(**from_json(text))


@dataclass(slots=True)
class SlotBook:
    """What the machine believes of a slot: its queue of (lot, packs), a reason that blocks it, whether to try it if empty."""

    queue: list[tuple[str, int]] = field(default_factory=list)
    blocked_by: str | None = None
    try_once: bool = False

    def front(self) -> str | None:
        """The lot of the next pack."""
        return self.queue[0][0] if self.queue else None

    def less_one(self) -> "SlotBook":
        """The same book without its front pack; an empty one stays empty."""
        if not self.queue:
            return self.copy()
        (lot, packs), *rest = self.queue
        return SlotBook(([(lot, packs - 1)] if packs > 1 else []) + rest, self.blocked_by, self.try_once)

    def copy(self) -> "SlotBook":
        """A copy to change."""
        return SlotBook(list(self.queue), self.blocked_by, self.try_once)

    def to_json(self) -> str:
        """The form in which a book is kept."""
        return to_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "SlotBook":
        """Read the form in which a book is kept."""
        value = from_json(text)
        return cls([(lot, packs) for lot, packs in value["queue"]], value["blocked_by"], value["try_once"])
