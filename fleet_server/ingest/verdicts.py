"""Where a batch stands against the cursor of its stream. Pure."""

from collections.abc import Callable
from typing import NamedTuple

from fleet_server.devices.machines import Cursor
from protocol.codec import Batch, next_digest


class Applies(NamedTuple):
    """The lines from `first_seq` on are new, the last of them has this digest; an empty tuple means that all are duplicates."""

    first_seq: int
    lines: tuple[bytes, ...]
    digest: bytes


class Beyond(NamedTuple):
    """The batch begins beyond the cursor: something is missing before it."""


class Forked(NamedTuple):
    """A number came again with other bytes, or continues another history; these lines are kept aside."""

    first_seq: int
    lines: tuple[bytes, ...]


class Misframed(NamedTuple):
    """The chain of the batch does not add up with its own bytes."""

    reason: str


Stand = Applies | Beyond | Forked | Misframed


def judge(batch: Batch, cursor: Cursor, stored: Callable[[int, int], list[bytes]]) -> Stand:
    """Compare a batch with the cursor; `stored(first, last)` reads back lines where the batch overlaps them."""
    first = batch.header.first_seq
    if first > cursor.through_seq + 1:
        return Beyond()
    overlap = min(cursor.through_seq - first + 1, len(batch.lines))
    digest = bytes.fromhex(batch.header.prev_digest)
    for line in batch.lines[:overlap]:
        digest = next_digest(digest, line)
    reaches_cursor = overlap == cursor.through_seq - first + 1
    if reaches_cursor and digest != cursor.digest:
        return _disagreement(batch, cursor, overlap, stored)
    if not reaches_cursor and list(batch.lines) != stored(first, first + overlap - 1):
        return Forked(first, batch.lines)
    new = batch.lines[overlap:] if overlap else batch.lines
    for line in new:
        digest = next_digest(digest, line)
    return Applies(first + overlap, new, digest)


def _disagreement(batch: Batch, cursor: Cursor, overlap: int, stored: Callable[[int, int], list[bytes]]) -> Stand:
    """Tell a fork from a chain that was computed wrongly: only the bytes can say."""
    first = batch.header.first_seq
    if cursor.through_seq == 0:
        # Nothing is stored that this could be another history of.
        return Misframed(f"prev_digest {batch.header.prev_digest[:16]}...: expected the digest before fact 1")
    if overlap and list(batch.lines[:overlap]) == stored(first, cursor.through_seq):
        return Misframed(f"prev_digest {batch.header.prev_digest[:16]}...: expected the digest of fact {first - 1}")
    return Forked(first, batch.lines)
