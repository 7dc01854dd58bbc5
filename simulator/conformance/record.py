"""What a dispenser has said in one stream, with the rules that hold for every batch of it."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from protocol.codec import SchemaError, decode_fact, first_digest, next_digest
from protocol.messages import BatchHeader
from protocol.versions import BATCH_BYTES_MAX, BATCH_FACTS_MAX, FACT_BYTES_MAX, MESSAGE_BYTES_MAX
from simulator.conformance.checklist import Checklist

WINDOW_BATCHES_MAX: Final = 16
"""More unanswered batches than this are no "small window"."""

PERSONAL_NAMES: Final = re.compile(
    r"(^|_)(user|person|customer|visitor|name|phone|mobile|tel|email|openid|unionid|wechat|alipay|card|face|photo|imei|imsi|mac|birthday|gender|sex|age)(_|$)"
)
PERSONAL_VALUES: Final = re.compile(r"1[3-9]\d{9}|\d{17}[\dXx]|[^@\s]+@[^@\s]+\.[a-z]+")
"""A mobile number, a citizen's number, a mail address."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One batch as it came."""

    at_s: float
    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class Said:
    """One fact, read."""

    seq: int
    value: dict[str, Any]


class StreamRecord:
    """The facts of one stream from 1 on, their chain, and every batch that carried them."""

    def __init__(self, dispenser_id: str, stream_id: str, checklist: Checklist) -> None:
        self.stream_id = stream_id
        self._dispenser_id, self._checklist = dispenser_id, checklist
        self._lines: list[bytes] = []
        self._base = 0
        self._digests = [first_digest(dispenser_id, stream_id)]
        self._joined = False
        self._expected: int | None = None
        self._unanswered = 0
        self._ahead: dict[int, int] = {}
        self._payloads: set[bytes] = set()
        self.batches: list[Sent] = []
        self.facts: list[Said] = []
        self.acked = 0
        self.power_was_cut = False
        """Whether the power has just been cut: other facts under known numbers mean that those were lost."""
        checklist.expect("STREAM", re.fullmatch("[0-9a-f]{32}", stream_id) is not None, "id of 32 hexadecimal digits")

    @property
    def last(self) -> int:
        """The last number that came without a gap."""
        return self._base + len(self._lines)

    def digest(self, seq: int) -> bytes:
        """Return the digest of a number that came."""
        return self._digests[seq - self._base]

    def join(self, first_seq: int, prev_digest: bytes) -> None:
        """Begin in the middle of a stream whose beginning does not come."""
        self._base, self._digests, self._lines, self._joined = first_seq - 1, [prev_digest], [], True

    def answered(self, through_seq: int) -> None:
        """Note what the dispenser was told."""
        self.acked, self._unanswered = through_seq, 0

    def take(self, header: BatchHeader, payload: bytes, at_s: float) -> None:
        """Read one batch, and judge it."""
        lines = payload.split(b"\n")[1:]
        first, last = header.first_seq, header.first_seq + len(lines) - 1
        self._judge_limits(payload, lines, first)
        if payload in self._payloads:
            return  # repeated by the transport
        self._payloads.add(payload)
        self.batches.append(Sent(at_s, first, last))
        if not self._joined and first > 1:
            if not header.oldest:
                return
            self.join(first, bytes.fromhex(header.prev_digest))
            self._checklist.expect("OLDEST", True, f"from {first} on, which says that it is the oldest")
        self._joined = True
        self._judge_order(first, last)
        if self._base < first <= self.last + 1:
            self._judge_digest(first, bytes.fromhex(header.prev_digest))
            for place, line in enumerate(lines):
                self._take_line(first + place, line)

    # ------------------------------------------------------------ rules of every batch

    def _judge_limits(self, payload: bytes, lines: list[bytes], first: int) -> None:
        expect = self._checklist.expect
        longest = max(map(len, lines), default=0)
        expect(
            "LIMITS", longest <= FACT_BYTES_MAX, "facts of at most 4 KiB", f"from {first}: a fact of {longest} bytes"
        )
        count = len(lines)
        expect("LIMITS", 1 <= count <= BATCH_FACTS_MAX, "1 to 100 facts", f"from {first}: a batch of {count} facts")
        bytes_max = BATCH_BYTES_MAX if count > 1 else MESSAGE_BYTES_MAX
        told = f"from {first}: a batch of {count} facts and {len(payload)} bytes"
        expect("LIMITS", len(payload) <= bytes_max, "batches of at most 16 KiB", told)

    def _judge_order(self, first: int, last: int) -> None:
        expect = self._checklist.expect
        if self._expected is not None and first > self._expected and first != self.acked + 1:
            self._ahead[first] = self._expected
        elif self._expected is not None:
            begins_well = first == self._expected or first <= self.acked + 1
            told = f"{first} came where {self._expected} or {self.acked + 1} was due"
            expect("IN-ORDER", begins_well, "one after the other", told)
        again = self._expected is not None and first < self._expected
        self._unanswered = 1 if again else self._unanswered + 1
        self._expected = last + 1
        small = self._unanswered <= WINDOW_BATCHES_MAX
        expect("IN-ORDER", small, "few ahead", f"{self._unanswered} batches ahead of the answers")

    def _judge_digest(self, first: int, prev_digest: bytes) -> None:
        expect = self._checklist.expect
        due = self.digest(first - 1)
        if prev_digest == due:
            expect("CHAIN", True, "adds up from digest(0)" if not self._base else "adds up")
            expect("PREV-DIGEST", True, "that of the fact before, in every batch")
        elif prev_digest in self._digests:
            expect("PREV-DIGEST", False, "", f"from {first}: it is the digest of another fact")
        else:
            expect("CHAIN", False, "", f"before {first}: {prev_digest.hex()[:12]}, computed {due.hex()[:12]}")

    def _take_line(self, seq: int, line: bytes) -> None:
        if seq <= self.last:
            known = self._lines[seq - self._base - 1]
            if known == line:
                self._checklist.expect("RECUT", True, "the same bytes when they came again")
                return
            self._differs(seq, known, line)
        self._lines.append(line)
        self._digests.append(next_digest(self._digests[-1], line))
        self._read(seq, line)

    def _differs(self, seq: int, known: bytes, line: bytes) -> None:
        """Other bytes under a known number: say whose fault it is, and go on with the new ones."""
        was, now = _value(known), _value(line)
        same = all(was.get(name) == now.get(name) for name in ("kind", "boot_id", "mono_ms", "at_ms"))
        told = f"number {seq} was {was.get('kind')}, and then {now.get('kind')}"
        if same:
            self._checklist.expect("RECUT", False, "", f"number {seq} was encoded again")
        elif seq > 1 and self.power_was_cut:
            self._checklist.expect("DURABLE", False, "", f"{told}: what was said before the power cut is lost")
        else:
            self._checklist.expect("SEQ", False, "", told)
        del self._lines[seq - self._base - 1 :]
        del self._digests[seq - self._base :]
        self.facts = [fact for fact in self.facts if fact.seq < seq]

    def _read(self, seq: int, line: bytes) -> None:
        try:
            decode_fact(line)
        except SchemaError as error:
            self._checklist.unreadable.append(f"fact {seq}: {error}")
        value = _value(line)
        self.facts.append(Said(seq, value))
        judge_identity(self._checklist, value)
        if seq == 1:
            begins = value.get("kind") == "started" and value.get("reason") == "new_stream"
            told = f"it begins with {value.get('kind')}, {value.get('reason')}"
            self._checklist.expect("STREAM", begins, "begins with started, new_stream", told)

    def conclude(self) -> None:
        """Judge what shows only at the end: a jump that was never filled is a gap, one that was is disorder."""
        for first, expected in self._ahead.items():
            rule = "IN-ORDER" if self.last >= first else "SEQ"
            self._checklist.expect(rule, False, "", f"{first} came where {expected} was due")
        if self.facts:
            self._checklist.expect("SEQ", True, f"{self.facts[0].seq} to {self.last} without a gap")


def _value(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def judge_identity(checklist: Checklist, value: Any) -> None:
    """Look for what would name a person, by the names of fields and the form of values."""
    found = [name for name, _ in _leaves(value) if PERSONAL_NAMES.search(name)]
    found += [name for name, text in _leaves(value) if name != "lot" and PERSONAL_VALUES.fullmatch(str(text))]
    told = f"fields {', '.join(sorted(set(found)))}"
    checklist.expect("NO-IDENTITY", not found, "no field or value that looks like a person's", told)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, ""
            yield from _leaves(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, name)
    else:
        yield name, value if isinstance(value, str) else ""
