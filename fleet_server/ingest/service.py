"""The ingest worker: takes what the broker delivers, commits it, answers, and sends what waits for machines."""

import contextlib
import queue
import threading
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import structlog

from fleet_server.clock import Clock
from fleet_server.database import Connection, Database, DatabaseError, is_disconnect
from fleet_server.devices import outgoing_store, store
from fleet_server.ingest import metrics
from fleet_server.ingest.apply import Received, apply
from fleet_server.ingest.broker import Broker, BrokerAddress, Delivery
from fleet_server.ingest.outbound import compose
from protocol.codec import CodecError, decode_status, decode_vitals, encode
from protocol.messages import Books, Desired, Order, Vitals
from protocol.topics import Channel, Topic, TopicError, parse, topic

QUEUE_MAX: Final = 2_000
BATCH_MESSAGES_MAX: Final = 500
OUTGOING_EVERY_S: Final = 0.5
RETRY_DELAY_S: Final = 1.0

log = structlog.get_logger()


class IngestService:
    """One worker on one broker connection. Correct beside any number of others: the cursor row decides."""

    def __init__(self, database: Database, clock: Clock, address: BrokerAddress) -> None:
        self._database, self._clock = database, clock
        self._deliveries: queue.Queue[Delivery | None] = queue.Queue(QUEUE_MAX)
        self._broker = Broker(address, self._deliveries, self._on_up)
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)
        self._stopping = threading.Event()
        self._look_out = threading.Event()
        self._resend = threading.Event()
        self._flushes: queue.SimpleQueue[tuple[threading.Event, list[int]]] = queue.SimpleQueue()
        self._epoch: int | None = None
        self.sent = 0
        """Messages sent to machines since the start, acknowledgements aside."""

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted us."""
        return self._broker.connected

    def start(self) -> None:
        """Begin to work, in a thread of its own."""
        self._thread.start()
        self._broker.start()

    def stop(self) -> None:
        """Stop; what is not committed stays unacknowledged and comes again."""
        self._stopping.set()
        self._broker.stop()
        self._thread.join(timeout=10)

    def flush(self, timeout_s: float = 10) -> int:
        """Send everything that waits for machines now; returns how many messages were sent, once they are."""
        done, sent = threading.Event(), [0]
        self._flushes.put((done, sent))
        with contextlib.suppress(queue.Full):
            self._deliveries.put_nowait(None)  # wakes the worker
        done.wait(timeout_s)
        return sent[0]

    def _wake(self) -> None:
        self._look_out.set()

    def _on_up(self) -> None:
        """A message may have been lost with the connection: what is unanswered is sent again."""
        self._resend.set()
        self._wake()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                deliveries = self._take()
                if deliveries:
                    self._work(deliveries)
                self._send_outgoing()
            except Exception:
                # Whatever it was, the messages are unacknowledged: machines send them again.
                log.exception("ingest failed; trying again")
                self._stopping.wait(RETRY_DELAY_S)

    def _take(self) -> list[Delivery]:
        """Wait for a message, then take along what else is there."""
        try:
            taken = [self._deliveries.get(timeout=OUTGOING_EVERY_S / 5)]
        except queue.Empty:
            return []
        while len(taken) < BATCH_MESSAGES_MAX:
            try:
                taken.append(self._deliveries.get_nowait())
            except queue.Empty:
                break
        metrics.QUEUE.set(self._deliveries.qsize())
        return [delivery for delivery in taken if delivery is not None]

    def _work(self, deliveries: Sequence[Delivery]) -> None:
        """Commit deliveries together; where that fails for the data's sake, one by one, so that one cannot hold up the others."""
        while not self._stopping.is_set():
            try:
                self._commit(deliveries)
            except DatabaseError as error:
                if is_disconnect(error):
                    log.warning("database is away; waiting", error=str(error).splitlines()[0])
                    self._stopping.wait(RETRY_DELAY_S)
                    continue
                self._work_singly(deliveries, error)
            except Exception as error:  # noqa: BLE001 - whatever a message does, the others go on
                self._work_singly(deliveries, error)
            return

    def _work_singly(self, deliveries: Sequence[Delivery], error: Exception) -> None:
        if len(deliveries) > 1:
            for delivery in deliveries:
                self._work([delivery])
            return
        delivery = deliveries[0]
        log.error("message cannot be applied", topic=delivery.topic, error=repr(error)[:500])
        metrics.DEAD_LETTERS.inc()
        with self._database.begin() as connection:
            letter = (delivery.topic, delivery.payload, f"{type(error).__name__}: {error}"[:500])
            store.keep_dead_letters(connection, [letter], self._clock.now())
        self._broker.done(delivery)

    def _commit(self, deliveries: Sequence[Delivery]) -> None:
        now = self._clock.now()
        facts: list[Received] = []
        vitals: dict[str, Vitals] = {}
        dead: list[tuple[str, bytes, str]] = []
        came_up = False
        with self._database.begin() as connection:
            for delivery in deliveries:
                try:
                    where = parse(delivery.topic)
                    match where.channel:
                        case Channel.FACTS:
                            facts.append(Received(delivery.topic, where.dispenser_id, delivery.payload))
                        case Channel.VITALS:
                            vitals[where.dispenser_id] = decode_vitals(delivery.payload)
                        case _:
                            status = decode_status(delivery.payload)
                            came_up |= store.announce(connection, where.dispenser_id, status, now)
                except (CodecError, TopicError) as error:
                    dead.append((delivery.topic, delivery.payload, str(error)))
            store.keep_dead_letters(connection, dead, now)
            store.record_vitals(connection, vitals, now)
            replies, tally = apply(connection, facts, now, self._read_epoch(connection)) if facts else ([], None)
        for reply in replies:
            self._broker.publish(topic(reply.dispenser_id, Channel.ACK), encode(reply.message))
        for delivery in deliveries:
            self._broker.done(delivery)
        metrics.count(tally, len(dead))
        if came_up or facts:
            self._wake()

    def _read_epoch(self, connection: Connection) -> int:
        if self._epoch is None:
            self._epoch = store.server_epoch(connection)
        return self._epoch

    def _send_outgoing(self) -> None:
        """Send what waits, when something happened that may have made it wait, and now and then anyway."""
        waiting = []
        while not self._flushes.empty():
            waiting.append(self._flushes.get())
        if not (waiting or self._look_out.is_set() or self._outgoing_due()):
            return
        self._look_out.clear()
        sent = self._send_due(self._clock.now()) if self._broker.connected else 0
        for done, count in waiting:
            count[0] = sent
            done.set()

    _looked_s = 0.0

    def _outgoing_due(self) -> bool:
        now_s = metrics.monotonic()
        if now_s - self._looked_s < OUTGOING_EVERY_S:
            return False
        self._looked_s = now_s
        return True

    def _send_due(self, now: datetime) -> int:
        with self._database.begin() as connection:
            if self._resend.is_set():
                self._resend.clear()
                outgoing_store.forget_sent(connection)
            due = outgoing_store.due(connection, now)
            composed: list[tuple[Topic, Order | Desired | Books]] = []
            for message, stream_id, session, since in due:
                composed.append(
                    (Topic(message.dispenser_id, message.channel), compose(message, stream_id, session, since))
                )
            outgoing_store.mark_sent(connection, [(m.id, stream_id, session) for m, stream_id, session, _ in due], now)
        for where, body in composed:
            self._broker.publish(str(where), encode(body), retain=where.channel is Channel.DESIRED)
        self.sent += len(composed)
        return len(composed)
