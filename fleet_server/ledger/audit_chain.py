"""The audit of streams: the numbers of each are 1 to its cursor without a hole that nobody knows of, and the chain over the
stored bytes ends at the cursor's digest.

Written a second time, from docs/protocol.md: nothing here uses the code of ingest or of the protocol.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
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
    """How many facts a stream has, how far their numbers go on without a hole that nobody knows of, and the digest there.

    `astray` are facts beyond that, and holes that nothing goes on from.
    """

    facts: int
    through_seq: int
    digest: bytes
    astray: int


def walk(stream: Stream, lines: Iterable[tuple[int, bytes]]) -> Walked:
    """Walk a stream's stored lines (number, bytes), which come in the order of their numbers."""
    facts = seq = chained = passed = 0
    digest = hashlib.sha256(f"{stream.dispenser_id}/{stream.stream_id}".encode()).digest()
    for number, line in lines:
        facts += 1
        if seq + 1 in stream.holes:
            seq, digest = stream.holes[seq + 1]
            passed += 1
        if number == seq + 1:
            seq, digest = number, hashlib.sha256(digest + line).digest()
            chained += 1
    if seq + 1 in stream.holes:
        seq, digest = stream.holes[seq + 1]
        passed += 1
    return Walked(facts, seq, digest, facts - chained + len(stream.holes) - passed)


class Told:
    """What the facts of one stream say as they pass by: the door sessions, and which are stored under another kind than they name."""

    def __init__(self) -> None:
        self.doors: list[tuple[int, str, int | None]] = []
        """(opened at fact, code, closed at fact)."""
        self.misnamed: list[int] = []
        self._open: dict[str, list[int]] = defaultdict(list)

    def passing(self, lines: Iterable[tuple[int, bytes, str | None]]) -> Iterator[tuple[int, bytes]]:
        """Heed the lines (number, bytes, kind; None is quarantined) that come in the order of their numbers, and hand them on."""
        for number, line, kind in lines:
            try:
                if kind is not None and not _is_of_kind(line, kind):
                    self.misnamed.append(number)
                elif kind in {"door_opened", "door_closed"}:
                    self._door(number, kind, json.loads(line)["session"])
            except (ValueError, LookupError, TypeError):
                self.misnamed.append(number)
            yield number, line

    def _door(self, number: int, kind: str, code: str) -> None:
        """A session ends with the first word of its end that comes after its beginning."""
        if kind == "door_opened":
            self._open[code].append(len(self.doors))
            self.doors.append((number, code, None))
            return
        for place in self._open.pop(code, []):
            self.doors[place] = (*self.doors[place][:2], number)


def _is_of_kind(line: bytes, kind: str) -> bool:
    # Most are not worth reading. Who writes a field twice means the last.
    as_agents_write = line.count(b'"kind"') == 1 and b'"kind":"%b"' % kind.encode() in line
    return bool(as_agents_write or json.loads(line)["kind"] == kind)
