"""The ingest process: takes what the broker delivers, lets the worker commit it, answers, and sends what waits for machines."""

import contextlib
import gc
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from fleet_server.clock import Clock
from fleet_server.database import Database, DatabaseError, is_disconnect
from fleet_server.ingest import metrics
from fleet_server.ingest.broker import Broker, BrokerAddress, Delivery
from fleet_server.ingest.worker import Message, Worker
from protocol.topics import FROM_DISPENSER, Channel

READS_WAITING_MAX: Final = 16
"""Each holds what one read of the socket brought: some hundred KiB at most. What waits beyond that waits in the broker."""
TRANSACTION_MESSAGES_MAX: Final = 5_000
TRANSACTION_BYTES_MAX: Final = 1_500_000
"""A transaction takes what has come while the one before it was committed, up to about so much: 5,000 facts, or a quarter of a second."""
OBJECTS_BEFORE_COLLECTION: Final = 100_000
OUTGOING_EVERY_S: Final = 0.5
RETRY_DELAY_S: Final = 1.0

log = structlog.get_logger()


class IngestService:
    """One worker on one broker.

    While `is_played` says that history is being played, messages to machines leave only when asked for (`flush`): what a machine
    is told, and when, must not depend on how fast this process is.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        address: BrokerAddress,
        is_played: Callable[[], bool] = lambda: False,
        share: str | None = None,
    ) -> None:
        self._worker = Worker(database, clock)
        self._is_played = is_played
        self._look_out = threading.Event()
        self._reads: queue.Queue[list[Delivery]] = queue.Queue(READS_WAITING_MAX)
        # A flood of readings must not take the room that facts have on their way, nor the other way round.
        self._broker = Broker(address, self._reads, self._on_up, share, [Channel.FACTS])
        self._readings = Broker(
            address,
            self._reads,
            self._look_out.set,
            share,
            [channel for channel in FROM_DISPENSER if channel is not Channel.FACTS],
        )
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)
        self._stopping = threading.Event()
        self._resend = threading.Event()
        self._flushes: queue.SimpleQueue[threading.Event] = queue.SimpleQueue()
        self._progress = threading.Condition()
        self.sent = 0
        """Messages sent to machines since the start, acknowledgements aside."""
        self.handled = 0
        """Messages of QoS 1 committed and acknowledged since the start."""

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted us."""
        return self._broker.connected and self._readings.connected

    def start(self) -> None:
        """Begin to work, in a thread of its own."""
        # All that a transaction makes lives until its end: looking through it for cycles again and again cost a sixth of the time.
        gc.freeze()
        gc.set_threshold(OBJECTS_BEFORE_COLLECTION)
        self._thread.start()
        self._broker.start()
        self._readings.start()

    def stop(self) -> None:
        """Stop; what is not committed stays unacknowledged and comes again."""
        self._stopping.set()
        self._broker.stop()
        self._readings.stop()
        self._thread.join(timeout=10)

    def flush(self, timeout_s: float = 10) -> None:
        """Send everything that waits for machines now; returns once it is sent."""
        done = threading.Event()
        self._flushes.put(done)
        with contextlib.suppress(queue.Full):
            self._reads.put_nowait([])  # wakes the worker
        done.wait(timeout_s)

    def await_handled(self, messages: int, timeout_s: float = 5) -> None:
        """Wait, not for ever, until so many messages of machines are committed."""
        with self._progress:
            self._progress.wait_for(lambda: self.handled >= messages, timeout_s)

    def _on_up(self) -> None:
        """A message may have been lost with the connection: what is unanswered is sent again."""
        self._resend.set()
        self._look_out.set()

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
            taken = self._reads.get(timeout=OUTGOING_EVERY_S / 5)
        except queue.Empty:
            return []
        size = sum(len(delivery.payload) for delivery in taken)
        while len(taken) < TRANSACTION_MESSAGES_MAX and size < TRANSACTION_BYTES_MAX:
            try:
                more = self._reads.get_nowait()
            except queue.Empty:
                break
            size += sum(len(delivery.payload) for delivery in more)
            taken += more
        metrics.QUEUE.set(self._reads.qsize())
        return taken

    def _work(self, deliveries: Sequence[Delivery]) -> None:
        """Commit deliveries together; where that fails for the data's sake, in halves, so that one cannot hold up the others."""
        while not self._stopping.is_set():
            try:
                self._commit(deliveries)
            except DatabaseError as error:
                if is_disconnect(error):
                    log.warning("database is away; waiting", error=str(error).splitlines()[0])
                    self._stopping.wait(RETRY_DELAY_S)
                    continue
                self._work_halves(deliveries, error)
            except Exception as error:  # noqa: BLE001 - whatever a message does, the others go on
                self._work_halves(deliveries, error)
            return

    def _work_halves(self, deliveries: Sequence[Delivery], error: Exception) -> None:
        if len(deliveries) > 1:
            middle = len(deliveries) // 2
            self._work(deliveries[:middle])
            self._work(deliveries[middle:])
            return
        delivery = deliveries[0]
        # The first line only: further ones may quote what was said.
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        log.error("message cannot be applied", topic=delivery.topic, error=reason)
        self._worker.bury(Message(delivery.topic, delivery.payload), error)
        self._done(deliveries)

    def _commit(self, deliveries: Sequence[Delivery]) -> None:
        committed = self._worker.commit([Message(delivery.topic, delivery.payload) for delivery in deliveries])
        self._broker.publish(committed.answers)
        self._done(deliveries)
        if committed.news:
            self._look_out.set()

    def _done(self, deliveries: Sequence[Delivery]) -> None:
        self._broker.done(deliveries)
        self._readings.done(deliveries)
        with self._progress:
            self.handled += sum(delivery.mid > 0 for delivery in deliveries)
            self._progress.notify_all()

    def _send_outgoing(self) -> None:
        """Send what waits, when something happened that may have made it wait, and now and then anyway."""
        waiting = []
        while not self._flushes.empty():
            waiting.append(self._flushes.get())
        if not waiting and (self._is_played() or not (self._look_out.is_set() or self._outgoing_due())):
            return
        self._look_out.clear()
        if self._broker.connected:
            self._send_due()
        for done in waiting:
            done.set()

    _looked_s = 0.0

    def _outgoing_due(self) -> bool:
        now_s = metrics.monotonic()
        if now_s - self._looked_s < OUTGOING_EVERY_S:
            return False
        self._looked_s = now_s
        return True

    def _send_due(self) -> None:
        again = self._resend.is_set()
        self._resend.clear()
        due = self._worker.outbound(again=again)
        self._broker.publish(due)
        self.sent += len(due)
