"""The audit of streams: the numbers of each are 1 to its cursor without a hole that nobody knows of, and the chain over the
stored bytes ends at the cursor's digest.

Written a second time, from docs/protocol.md: nothing here uses the code of ingest or of the protocol.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stream:
    """A cursor as it is stored. `holes` are facts that are nowhere: first number -> (last number, digest there)."""

    dispenser_id: str
    stream_no: int
    stream_id: str
    through_seq: int
    digest: bytes
    holes: Mapping[int, tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class Walked:
    """How many facts a stream has, how far their numbers go on without a hole that nobody knows of, and the digest there."""

    facts: int
    through_seq: int
    digest: bytes


def walk(stream: Stream, lines: Iterable[tuple[int, bytes]]) -> Walked:
    """Walk a stream's stored lines (number, bytes), which come in the order of their numbers."""
    facts, seq = 0, 0
    digest = hashlib.sha256(f"{stream.dispenser_id}/{stream.stream_id}".encode()).digest()
    for number, line in lines:
        facts += 1
        if seq + 1 in stream.holes:
            seq, digest = stream.holes[seq + 1]
        if number == seq + 1:
            seq, digest = number, hashlib.sha256(digest + line).digest()
    if seq + 1 in stream.holes:
        seq, digest = stream.holes[seq + 1]
    return Walked(facts, seq, digest)
