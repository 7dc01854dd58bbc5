"""The server as the script plays it: hears everything, answers or keeps silent, and sends what a scene asks for."""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from protocol.codec import CodecError, decode_status, decode_vitals, explain
from protocol.messages import BatchHeader
from protocol.topics import Channel
from protocol.versions import MESSAGE_BYTES_MAX
from simulator.conformance.checklist import Checklist
from simulator.conformance.record import Said, StreamRecord, judge_identity
from simulator.mqtt import BridgeError, Heard, Listener
from simulator.real_time import monotonic

T = TypeVar("T")

ORDER_LIVES_MS: Final = 7 * 86_400_000
ANSWER_S_MAX: Final = 10.0
"""How long a dispenser may take to answer an order; a vend may take that long, too."""
QUIET_S: Final = 0.7
"""How long the script listens for what must not come."""
STRANGER_SUFFIX: Final = "-STRANGER"


@dataclass(frozen=True, slots=True)
class Presence:
    """One message on `status`."""

    stream_id: str
    session: int
    online: bool
    retained: bool
    at_s: float


class Counterpart:
    """Speaks for the server of one dispenser. Nothing happens outside `until` and `settle`: they empty the queue."""

    def __init__(self, listener: Listener, dispenser_id: str, checklist: Checklist) -> None:
        self._listener, self.dispenser_id, self.checklist = listener, dispenser_id, checklist
        self.streams: dict[str, StreamRecord] = {}
        self.presences: list[Presence] = []
        self._current: StreamRecord | None = None
        self.answering = False
        self.session = 0
        self.epoch = self._told_epoch = 0
        self.wall_ms = 0
        self.greets = False
        self.greetings: list[str] = []
        """Orders that were sent at the sight of a new session."""

    @property
    def record(self) -> StreamRecord:
        """The stream that is spoken now."""
        if self._current is None:
            raise RuntimeError("no stream is known yet")
        return self._current

    @property
    def known(self) -> bool:
        """Whether stream and session are known, so that orders can be bound to them."""
        return self._current is not None and self.session > 0

    # ------------------------------------------------------------ hearing

    def until(self, condition: Callable[[], T], seconds: float) -> T:
        """Hear until the condition holds or the time is over; returns its last value.

        Raises BridgeError when the broker leaves us: a dispenser is not to blame for what we did not hear.
        """
        deadline = monotonic() + seconds
        while not (found := condition()) and (left := deadline - monotonic()) > 0:
            if not self._listener.connected:
                raise BridgeError("the connection to the broker was lost: nothing can be said of the dispenser")
            heard = self._listener.hear(min(left, 0.05))
            if heard is not None:
                self._take(heard)
        return found

    def settle(self, seconds: float = QUIET_S) -> None:
        """Hear for a while."""
        self.until(lambda: False, seconds)

    def _take(self, heard: Heard) -> None:
        self.wall_ms = heard.wall_ms
        if len(heard.payload) > MESSAGE_BYTES_MAX:
            self.checklist.expect("LIMITS", False, "", f"{heard.channel}: a payload of {len(heard.payload)} bytes")
        try:
            if heard.channel is Channel.FACTS:
                self._take_batch(heard)
            elif heard.channel is Channel.STATUS:
                self._take_status(heard)
            else:
                vitals = decode_vitals(heard.payload)
                judge_identity(self.checklist, json.loads(heard.payload))
                self._owned(vitals.stream_id in self.streams, "vitals of a stream that nobody announced")
        except CodecError as error:
            self.checklist.unreadable.append(f"{heard.channel}: {error}")
        except ValidationError as error:
            self.checklist.unreadable.append(f"{heard.channel}: {explain(error)}")

    def _owned(self, holds: bool, told: str) -> None:
        self.checklist.expect("TOPIC-OWN", holds, "every header names the sender", told)

    def _take_batch(self, heard: Heard) -> None:
        header = BatchHeader.model_validate_json(heard.payload.split(b"\n", 1)[0])
        judge_identity(self.checklist, json.loads(header.model_dump_json()))
        told = f"a header on its topic names {header.dispenser_id}"
        self._owned(header.dispenser_id == self.dispenser_id, told)
        record = self._stream(header.stream_id)
        record.take(header, heard.payload, heard.at_s)
        if self.answering:
            self.acknowledge()

    def _take_status(self, heard: Heard) -> None:
        if not heard.payload:
            return
        status = decode_status(heard.payload)
        judge_identity(self.checklist, json.loads(heard.payload))
        self.presences.append(Presence(status.stream_id, status.session, status.online, heard.retained, heard.at_s))
        if not status.online:
            return
        if heard.retained:
            self._stream(status.stream_id)
            self.session = max(self.session, status.session)
            return
        told = f"session {status.session} after {self.session}"
        self.checklist.expect("SESSION", status.session > self.session, "they grow with every connection", told)
        self._stream(status.stream_id)
        self.session = status.session
        if self.greets:
            self.greetings.append(self.order("self_test"))

    def _stream(self, stream_id: str) -> StreamRecord:
        if stream_id not in self.streams:
            self.streams[stream_id] = StreamRecord(self.dispenser_id, stream_id, self.checklist)
            self._current = self.streams[stream_id]
        return self.streams[stream_id]

    # ------------------------------------------------------------ what was heard

    def said(self, kind: str, **fields: Any) -> list[Said]:
        """Return the facts of all streams that have this kind and these values."""
        wanted = {"kind": kind, **fields}
        facts = (fact for record in self.streams.values() for fact in record.facts)
        return [fact for fact in facts if all(fact.value.get(name) == value for name, value in wanted.items())]

    def answer(self, order_id: str, seconds: float = ANSWER_S_MAX) -> dict[str, Any]:
        """Wait for the answer of an order; empty when none comes."""
        found = self.until(lambda: self.said("order_result", order_id=order_id), seconds)
        return found[0].value if found else {}

    def resent(self, since: int, first_seq: int) -> int:
        """Count the batches that began there since so many batches were known."""
        return sum(batch.first_seq == first_seq for batch in self.record.batches[since:])

    # ------------------------------------------------------------ speaking

    def send(self, channel: Channel, message: dict[str, Any] | BaseModel, dispenser_id: str | None = None) -> None:
        """Send one message; only a desired state is retained."""
        value = message if isinstance(message, dict) else message.model_dump(mode="json", exclude_none=True)
        payload = json.dumps(value).encode()
        retain = channel is Channel.DESIRED and dispenser_id is None
        self._listener.publish(dispenser_id or self.dispenser_id, channel, payload, 1, retain)

    def forget_desired(self) -> None:
        """Take the retained desired state out of the broker."""
        self._listener.publish(self.dispenser_id, Channel.DESIRED, b"", 1, retain=True)

    def ask_for_retained(self) -> Presence | None:
        """Ask the broker what it retains on `status`."""
        known = len(self.presences)
        self._listener.ask_for_retained()
        kept = self.until(lambda: [p for p in self.presences[known:] if p.retained], 2)
        return kept[-1] if kept else None

    def acknowledge(self, kind: str = "ack", through_seq: int | None = None, **other: Any) -> None:
        """Answer, truthfully unless a scene says otherwise."""
        record = self.record
        through = record.last if through_seq is None else through_seq
        try:
            digest = record.digest(through)
        except IndexError:
            digest = bytes(32)
        value = {
            "v": 1, "kind": kind, "server_epoch": self.epoch, "stream_id": record.stream_id, "through_seq": through,
            "digest": digest.hex(), "server_at_ms": self.wall_ms,
        }  # fmt: skip
        if kind == "nack":
            value["reason"] = "refused by the conformance script"
        self.send(Channel.ACK, value | other)
        honest = kind == "ack" and not other.keys() & {"stream_id", "server_epoch", "digest"}
        if honest and (through >= record.acked or self.epoch > self._told_epoch):
            record.answered(through)
            self._told_epoch = self.epoch

    def hold(self) -> None:
        """Acknowledge what is there, and then keep silent."""
        self.answering = False
        self.acknowledge()
        self.settle(0.2)
        self.acknowledge()

    def go_on(self) -> None:
        """Acknowledge everything from now on."""
        self.answering = True
        self.acknowledge()

    def order(self, kind: str, order_id: str | None = None, *, to: str | None = None, **other: Any) -> str:
        """Send an order in this session; returns its id."""
        order_id = order_id or secrets.token_hex(16)
        value = {
            "v": 1, "kind": kind, "order_id": order_id, "stream_id": self.record.stream_id, "session": self.session,
            "expires_after_ms": ORDER_LIVES_MS,
        }  # fmt: skip
        self.send(Channel.ORDERS, value | other, to)
        return order_id

    def new_fact(self) -> int:
        """Make the dispenser say one fact more, by an order; returns its number, 0 when it does not come."""
        order_id = self.order("self_test")
        return self.record.last if self.answer(order_id) else 0

    @property
    def stranger(self) -> str:
        """The id of a dispenser that is not there."""
        return f"{self.dispenser_id[: 32 - len(STRANGER_SUFFIX)]}{STRANGER_SUFFIX}"


def stream_of_nobody() -> str:
    """Make the id of a stream that nobody speaks."""
    return secrets.token_hex(16)
