"""One machine's way to its broker: up or down, and what becomes of single messages while it is bad. Seeded, without I/O."""

import re
from enum import StrEnum
from typing import Final

from pydantic_core import from_json

from simulator.world import World

SERVER_AT: Final = re.compile(rb'"server_at_ms":\d+')
LATER_MS: Final = 45_000
"""A message that is held up arrives so much later at the most: behind others that were sent after it."""


class Fate(StrEnum):
    """What becomes of a batch of facts."""

    ARRIVES = "arrives"
    LOST = "lost"
    UNANSWERED = "unanswered"
    DOUBLED = "doubled"
    LATE = "late"


BAD: Final = (Fate.LOST, Fate.UNANSWERED, Fate.DOUBLED, Fate.LATE)


class Link:
    """Decides, and remembers which answers are still to come and whether the machine hears them."""

    def __init__(self, world: World, dispenser_id: str) -> None:
        self._world, self._id = world, dispenser_id
        self.waiting: list[tuple[int, int, bool]] = []
        """Answers that are still to come: when the batch was sent, its last fact, whether the machine hears the answer."""
        self._messages = 0
        self.unheard_until_ms = self.unserved_until_ms = 0
        self.bad_until_ms, self.bad_share = 0, 0.0

    def fate(self, now_ms: int) -> Fate:
        """Tell what becomes of a batch that is sent now."""
        self._messages += 1
        if now_ms < self.unserved_until_ms:
            return Fate.LOST
        if now_ms < self.unheard_until_ms:
            return Fate.UNANSWERED
        if now_ms >= self.bad_until_ms:
            return Fate.ARRIVES
        luck = self._world.noise("fate", self._id, now_ms, self._messages)
        return BAD[luck % len(BAD)] if (luck >> 8) % 10_000 < self.bad_share * 10_000 else Fate.ARRIVES

    def later_ms(self, now_ms: int) -> int:
        """Tell by how much a late message is late."""
        return 1 + self._world.noise("late", self._id, now_ms, self._messages) % LATER_MS

    def sent(self, sent_at_ms: int, last_seq: int, *, heard: bool) -> None:
        """A batch is on its way; its answer will be waited for, whether the machine hears it or not."""
        self.waiting.append((sent_at_ms, last_seq, heard))

    def answered(self, payload: bytes) -> bool:
        """Strike out what an answer answers, which may be several batches; returns whether the machine hears it."""
        if not self.waiting:
            return False
        answer = from_json(payload)
        if answer["kind"] == "ack":
            struck = [batch for batch in self.waiting if batch[1] <= answer["through_seq"]]
        else:
            places = [place for place, batch in enumerate(self.waiting) if batch[0] == answer["sent_at_ms"]]
            struck = self.waiting[: places[-1] + 1] if places else []
        self.waiting = [batch for batch in self.waiting if batch not in struck]
        return not struck or any(heard for _, _, heard in struck)

    def cut(self) -> None:
        """The connection is gone, and what was on its way with it."""
        self.waiting.clear()

    def heal(self) -> None:
        """Let everything through again."""
        self.unheard_until_ms = self.unserved_until_ms = self.bad_until_ms = 0


def told_at(payload: bytes, at_ms: int) -> bytes:
    """Return a server's answer as a server whose clock runs would have given it: ours stands still while lanes run."""
    return SERVER_AT.sub(b'"server_at_ms":%d' % at_ms, payload, count=1)
