"""A counterpart in memory that plays the server's side of the protocol, so that an agent can be tested without a server.

It acknowledges facts in order and tells gaps, forks and broken chains; it keeps every fact, sends desired state, books and
orders, and takes the place of a server in this process (`--in-process simulator.stand_in:connect`). It is not the server: it
keeps no ledger, makes no plan, has no users, and forgets everything at its end. So nothing that needs a ledger can be judged
against it, and what it holds of an agent says nothing about a server.
"""

import hashlib
import json
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from pydantic import TypeAdapter

from protocol.codec import (
    Batch,
    CodecError,
    FramingError,
    SchemaError,
    decode_batch,
    decode_fact,
    decode_status,
    decode_vitals,
    encode,
    first_digest,
    next_digest,
)
from protocol.messages import (
    Ack,
    AckMessage,
    Books,
    Desired,
    Fact,
    Fork,
    Gap,
    Limits,
    LotInfo,
    LotPacks,
    Nack,
    OpeningHours,
    Order,
    OrderResult,
    SlotClaim,
    SlotPlan,
    Vitals,
)
from protocol.topics import Channel, parse, topic

ORDER_LIVES_MS: Final = 86_400_000
PLANOGRAM: Final = ("CONDOM-M", "CONDOM-M", "CONDOM-L", "CONDOM-S")
CAPACITY: Final = 12
LOT: Final = "STANDIN-1"
LOT_LASTS: Final = timedelta(days=3 * 365)
_ORDER: Final[TypeAdapter[Order]] = TypeAdapter(Order)

Arrived = tuple[str, bytes]
"""(topic, payload)"""


@dataclass
class Stream:
    """One stream as it was heard: the lines in their order, and what else came under its name."""

    dispenser_id: str
    stream_id: str
    lines: list[bytes] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    repeated: int = 0
    gaps: int = 0
    quarantined: list[int] = field(default_factory=list)
    forked: list[bytes] = field(default_factory=list)

    @property
    def through_seq(self) -> int:
        """The number of the last fact."""
        return len(self.lines)

    def digest(self, seq: int) -> bytes:
        """Return the chain's digest at a fact."""
        return self.digests[seq - 1] if seq else first_digest(self.dispenser_id, self.stream_id)

    def facts(self) -> list[Fact]:
        """Return every fact that can be read."""
        return [decode_fact(line) for seq, line in enumerate(self.lines, 1) if seq not in self.quarantined]


@dataclass
class Peer:
    """What is known of one dispenser, and what waits for it."""

    streams: dict[str, Stream] = field(default_factory=dict)
    newest: str | None = None
    session: int = 0
    online: bool = False
    vitals: Vitals | None = None
    desired: Desired | None = None
    books_version: int = 0
    orders: dict[str, dict[str, Any]] = field(default_factory=dict)
    answered: dict[str, OrderResult] = field(default_factory=dict)

    @property
    def stream(self) -> Stream | None:
        """The stream that is spoken now."""
        return self.streams.get(self.newest or "")


class StandIn:
    """The port of a server in this process, and the hands of a test: `desire`, `tell_books`, `order`, `facts`."""

    keeps_ledger: Final = False

    def __init__(self, epoch: int = 1) -> None:
        self.epoch = epoch
        self.now_ms = 0
        self.peers: dict[str, Peer] = defaultdict(Peer)
        self.unreadable: list[str] = []
        self._waiting: deque[Arrived] = deque()
        self._arrived: list[Arrived] = []
        self._sent = 0
        self._order_number = 0

    # ------------------------------------------------------------ what a test asks and says

    def facts(self, dispenser_id: str, kind: str | None = None) -> list[Fact]:
        """Return what a dispenser has told, all its streams in their order, of one kind or of all."""
        told = (fact for stream in self.peers[dispenser_id].streams.values() for fact in stream.facts())
        return [fact for fact in told if kind in {None, fact.kind}]

    def desire(
        self,
        dispenser_id: str,
        slots: Sequence[SlotPlan],
        lots: Sequence[LotInfo],
        limits: Limits | None = None,
        opening_hours: OpeningHours | None = None,
    ) -> Desired:
        """Give a dispenser a new desired state; it is sent now, and again in every session."""
        peer = self.peers[dispenser_id]
        version = 1 if peer.desired is None else peer.desired.version + 1
        peer.desired = Desired(
            version=version,
            planogram=list(slots),
            lots=list(lots),
            limits=limits or Limits(),
            opening_hours=opening_hours or OpeningHours(),
        )
        self._send(dispenser_id, Channel.DESIRED, encode(peer.desired))
        return peer.desired

    def desire_usual(self, dispenser_id: str, today: date, products: Sequence[str] = PLANOGRAM) -> None:
        """Give a dispenser a planogram with one good lot of each product."""
        slots = [SlotPlan(slot=n, product=product, capacity=CAPACITY) for n, product in enumerate(products, 1)]
        lots = [LotInfo(lot=LOT, product=it, expires_on=today + LOT_LASTS) for it in dict.fromkeys(products)]
        self.desire(dispenser_id, slots, lots)

    def tell_books(self, dispenser_id: str, slots: Mapping[int, Sequence[tuple[str, int]]]) -> None:
        """Tell a dispenser the queues (lot, packs) of its slots, as of the last fact that was heard."""
        peer = self.peers[dispenser_id]
        if peer.stream is None:
            raise ValueError(f"dispenser_id {dispenser_id}: expected one that has told a fact")
        peer.books_version += 1
        claims = [
            SlotClaim(slot=slot, queue=[LotPacks(lot=lot, packs=packs) for lot, packs in queue])
            for slot, queue in slots.items()
        ]
        books = Books(
            version=peer.books_version,
            stream_id=peer.stream.stream_id,
            as_of_seq=peer.stream.through_seq,
            slots=claims,
        )
        self._send(dispenser_id, Channel.BOOKS, encode(books))

    def order(self, dispenser_id: str, kind: str, *, lives_ms: int = ORDER_LIVES_MS, **fields: Any) -> str:
        """Order something; it is sent in the session that is, and in each later one until answered. Returns the order's id."""
        self._order_number += 1
        order_id = hashlib.sha256(f"{dispenser_id}/{self._order_number}".encode()).hexdigest()[:32]
        value = {"kind": kind, "order_id": order_id, "expires_after_ms": lives_ms, **fields}
        peer = self.peers[dispenser_id]
        peer.orders[order_id] = value
        if peer.online:
            self._send_order(dispenser_id, value)
        return order_id

    def answer(self, order_id: str) -> OrderResult | None:
        """Return what a dispenser answered to an order."""
        return next((peer.answered[order_id] for peer in self.peers.values() if order_id in peer.answered), None)

    # ------------------------------------------------------------ the port of a server in this process

    def take(self, messages: Sequence[Arrived]) -> list[Arrived]:
        """Take messages of dispensers; returns the answers, and what was let go since the last call."""
        for name, payload in messages:
            self._take(name, payload)
        arrived, self._arrived = self._arrived, []
        return arrived

    def request(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> tuple[int, bytes]:  # noqa: ARG002 - a port
        """Answer the few requests that a simulation cannot do without."""
        answers: dict[tuple[str, str], Any] = {
            ("POST", "/api/v1/sign-in"): {"token": "stand-in", "role": "administrator", "epoch": self.epoch},
            ("GET", "/api/v1/plans"): {"items": []},
            ("GET", "/api/v1/work-orders"): {"items": []},
            ("GET", "/readyz"): {},
        }
        if (method, path) == ("POST", "/api/v1/clock/advance"):
            return 200, json.dumps(self._advance(body["to"])).encode()
        answer = answers.get((method, path.partition("?")[0]))
        if answer is None:
            return 404, b'{"title": "the stand-in plays the protocol only"}'
        return 200, json.dumps(answer).encode()

    def close(self) -> None:
        """Nothing is kept."""

    def _advance(self, to: str) -> dict[str, Any]:
        """Move the clock, and let go what waits for dispensers, as the server does."""
        self.now_ms = max(self.now_ms, int(datetime.fromisoformat(to).timestamp() * 1000))
        self._sent += len(self._waiting)
        self._arrived += self._waiting
        self._waiting.clear()
        now = datetime.fromtimestamp(self.now_ms / 1000, UTC).isoformat()
        return {"now": now, "jobs_run": [], "messages_sent": self._sent, "messages_handled": 0}

    # ------------------------------------------------------------ the protocol

    def _take(self, name: str, payload: bytes) -> None:
        where = parse(name)
        try:
            match where.channel:
                case Channel.FACTS:
                    self._batch(where.dispenser_id, decode_batch(payload))
                case Channel.STATUS if payload:
                    self._status(where.dispenser_id, payload)
                case Channel.VITALS:
                    self.peers[where.dispenser_id].vitals = decode_vitals(payload)
                case _:
                    pass
        except CodecError as error:
            self.unreadable.append(f"{name}: {error}")
            stream = self.peers[where.dispenser_id].stream
            if isinstance(error, FramingError) and stream is not None:
                self._answer(stream, None, Nack, reason=str(error)[:200])

    def _batch(self, dispenser_id: str, batch: Batch) -> None:
        header = batch.header
        peer = self.peers[dispenser_id]
        if header.dispenser_id != dispenser_id:
            raise FramingError(f"dispenser_id {header.dispenser_id!r} in header: expected that of the topic")
        stream = peer.streams.get(header.stream_id) or Stream(dispenser_id, header.stream_id)
        if header.first_seq > stream.through_seq + 1:
            stream.gaps += 1
            return self._answer(stream, header.sent_at_ms, Gap)
        if header.stream_id not in peer.streams:
            peer.streams[header.stream_id], peer.newest = stream, header.stream_id
        known = stream.lines[header.first_seq - 1 :][: len(batch.lines)]
        broken = header.prev_digest != stream.digest(header.first_seq - 1).hex()
        if list(batch.lines[: len(known)]) != known or (broken and not known):
            stream.forked += batch.lines
            self.order(dispenser_id, "new_stream")
            return self._answer(stream, header.sent_at_ms, Fork)
        if broken:
            told = f"prev_digest {header.prev_digest[:16]}...: expected the digest of fact {header.first_seq - 1}"
            return self._answer(stream, header.sent_at_ms, Nack, reason=told)
        stream.repeated += len(known)
        quarantined = [seq for line in batch.lines[len(known) :] if (seq := self._fact(peer, stream, line))]
        return self._answer(stream, header.sent_at_ms, Ack, quarantined=quarantined)

    def _fact(self, peer: Peer, stream: Stream, line: bytes) -> int:
        """Keep one fact; returns its number where it could not be read."""
        stream.digests.append(next_digest(stream.digest(stream.through_seq), line))
        stream.lines.append(line)
        try:
            fact = decode_fact(line)
        except SchemaError:
            stream.quarantined.append(stream.through_seq)
            return stream.through_seq
        if isinstance(fact, OrderResult):
            peer.answered[fact.order_id] = fact
            peer.orders.pop(fact.order_id, None)
        return 0

    def _answer(self, stream: Stream, sent_at_ms: int | None, kind: type[AckMessage], **more: Any) -> None:
        message = kind(
            server_epoch=self.epoch,
            stream_id=stream.stream_id,
            through_seq=stream.through_seq,
            digest=stream.digest(stream.through_seq).hex(),
            server_at_ms=self.now_ms,
            sent_at_ms=sent_at_ms,
            **more,
        )
        self._arrived.append((topic(stream.dispenser_id, Channel.ACK), encode(message)))

    def _status(self, dispenser_id: str, payload: bytes) -> None:
        """A new session is sent what a retained topic and a live session would bring it."""
        status = decode_status(payload)
        peer = self.peers[dispenser_id]
        if not status.online and status.session < peer.session and status.stream_id == peer.newest:
            return  # a late will
        peer.online = status.online
        if not status.online:
            return
        peer.session = status.session
        if status.stream_id not in peer.streams:
            if peer.streams:
                peer.orders.clear()  # whether the former stream carried them out nobody can know
            peer.streams[status.stream_id], peer.newest = Stream(dispenser_id, status.stream_id), status.stream_id
        if peer.desired is not None:
            self._send(dispenser_id, Channel.DESIRED, encode(peer.desired))
        for value in peer.orders.values():
            self._send_order(dispenser_id, value)

    def _send_order(self, dispenser_id: str, value: Mapping[str, Any]) -> None:
        peer = self.peers[dispenser_id]
        if peer.newest is not None:
            bound = {"stream_id": peer.newest, "session": peer.session}
            self._send(dispenser_id, Channel.ORDERS, encode(_ORDER.validate_python({**value, **bound})))

    def _send(self, dispenser_id: str, channel: Channel, payload: bytes) -> None:
        self._waiting.append((topic(dispenser_id, channel), payload))


def connect(options: Mapping[str, str]) -> StandIn:
    """Make a stand-in for one run; it takes no options but when that begins, and with whom."""
    unknown = sorted(set(options) - {"begins", "dispensers"})
    if unknown:
        raise ValueError(f"--in-process-option {unknown[0]}: expected none with the stand-in")
    stand_in = StandIn()
    today = datetime.fromisoformat(options["begins"]).date()
    for dispenser_id in options["dispensers"].split(","):
        stand_in.desire_usual(dispenser_id, today)
    return stand_in
