"""A machine reduced to its stream: chains facts and cuts batches, so that server tests need no agent."""

import itertools
from dataclasses import dataclass, field
from typing import Any, Literal

from protocol.codec import encode_batch, encode_fact, first_digest, next_digest
from protocol.messages import BatchHeader, DoorClosed, DoorOpened, Fact, Outcome, Vend

BASE_MS = 1_790_000_000_000
_streams = itertools.count(1)


@dataclass
class Machine:
    """One stream of one dispenser: facts are appended, batches are cut from it at will."""

    dispenser_id: str = "HD-001"
    stream_id: str = field(default_factory=lambda: f"{next(_streams):032x}")
    lines: list[bytes] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.digests = [first_digest(self.dispenser_id, self.stream_id)]

    def when(self) -> dict[str, Any]:
        n = len(self.lines)
        return {"at_ms": BASE_MS + n * 60_000, "mono_ms": n * 60_000, "boot_id": "0" * 8, "clock_trusted": True}

    def tell(self, *facts: Fact) -> "Machine":
        for fact in facts:
            self.tell_line(encode_fact(fact))
        return self

    def tell_line(self, line: bytes) -> "Machine":
        self.lines.append(line)
        self.digests.append(next_digest(self.digests[-1], line))
        return self

    def vend(self, slot: int = 1, outcome: Outcome = Outcome.DELIVERED, **more: Any) -> "Machine":
        return self.tell(Vend(**self.when(), slot=slot, product="CONDOM-M", outcome=outcome, **more))

    def door(self, session: str) -> "Machine":
        self.tell(DoorOpened(**self.when(), session=session, authorised=True))
        return self.tell(DoorClosed(**self.when(), session=session, open_ms=60_000))

    def batch(self, first: int = 1, last: int | None = None, *, oldest: Literal[True] | None = None) -> bytes:
        header = BatchHeader(
            dispenser_id=self.dispenser_id,
            stream_id=self.stream_id,
            first_seq=first,
            prev_digest=self.digests[first - 1].hex(),
            sent_at_ms=BASE_MS,
            oldest=oldest,
        )
        return encode_batch(header, self.lines[first - 1 : last])
