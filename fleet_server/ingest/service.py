"""The ingest process: takes what the broker delivers, lets lanes commit it, answers, and sends what waits for machines."""

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
from fleet_server.ingest.lane import LANES, RETRY_DELAY_S, Lane
from fleet_server.ingest.worker import Committed, Worker
from fleet_server.logs import Outage
from protocol.topics import FROM_DISPENSER, Channel

OBJECTS_BEFORE_COLLECTION: Final = 100_000
OUTGOING_EVERY_S: Final = 0.5
STAND_EVERY_S: Final = 0.1
"""Ten thousand machines send again within two seconds, not at once."""

log = structlog.get_logger()


class IngestService:
    """Lanes between one broker and one database.

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
        self._lanes = [Lane(self._worker, self._on_commit) for _ in range(LANES)]
        self._look_out = threading.Event()
        self._resend = threading.Event()
        reads = [lane.reads for lane in self._lanes]
        # A flood of readings must not take the room that facts have on their way, nor the other way round.
        readings = [channel for channel in FROM_DISPENSER if channel is not Channel.FACTS]
        self._broker = Broker(address, reads, self._on_up, share, [Channel.FACTS])
        self._readings = Broker(address, reads, self._look_out.set, share, readings)
        self._sender = threading.Thread(target=self._send, name="sender", daemon=True)
        self._stopping = threading.Event()
        self._outage = Outage("sending")
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

    @property
    def backlog(self) -> int:
        """Reads of the broker's socket that wait for the slower lane."""
        return max(lane.reads.qsize() for lane in self._lanes)

    def start(self) -> None:
        """Begin to work, in threads of its own."""
        # All that a transaction makes lives until its end: looking through it for cycles again and again cost a sixth of the time.
        gc.freeze()
        gc.set_threshold(OBJECTS_BEFORE_COLLECTION)
        metrics.QUEUE.set_function(lambda: self.backlog)
        for lane in self._lanes:
            lane.start()
        self._sender.start()
        self._broker.start()
        self._readings.start()

    def stop(self) -> None:
        """Stop; what is not committed stays unacknowledged and comes again."""
        self._stopping.set()
        self._look_out.set()
        self._broker.stop()
        self._readings.stop()
        for lane in self._lanes:
            lane.stop()
        self._sender.join(timeout=10)

    def flush(self, timeout_s: float = 10) -> None:
        """Send everything that waits for machines now; returns once it is sent."""
        done = threading.Event()
        self._flushes.put(done)
        self._look_out.set()
        done.wait(timeout_s)

    def await_handled(self, messages: int, timeout_s: float = 5) -> None:
        """Wait, not for ever, until so many messages of machines are committed."""
        with self._progress:
            self._progress.wait_for(lambda: self.handled >= messages, timeout_s)

    def _on_up(self) -> None:
        """Messages may have been lost with the connection, in both directions: what is unanswered is sent again, and asked for."""
        self._resend.set()
        self._look_out.set()

    def _on_commit(self, deliveries: Sequence[Delivery], committed: Committed) -> None:
        """Answer machines and let the broker forget what they said; called by every lane."""
        self._broker.publish(committed.answers)
        self._broker.done(deliveries)
        self._readings.done(deliveries)
        with self._progress:
            self.handled += sum(delivery.mid > 0 for delivery in deliveries)
            self._progress.notify_all()
        if committed.news:
            self._look_out.set()

    def _send(self) -> None:
        """Send what waits for machines, when something happened that may have made it wait, and now and then anyway."""
        while not self._stopping.is_set():
            self._look_out.wait(OUTGOING_EVERY_S)
            self._look_out.clear()
            waiting = []
            while not self._flushes.empty():
                waiting.append(self._flushes.get())
            try:
                if self._broker.connected and (waiting or not self._is_played()):
                    self._send_due()
                    self._outage.over()
            except Exception as error:
                if isinstance(error, DatabaseError) and is_disconnect(error):
                    self._outage.note(error)
                else:
                    log.exception("sending failed; trying again")
                self._stopping.wait(RETRY_DELAY_S)
            for done in waiting:
                done.set()

    def _send_due(self) -> None:
        again = self._resend.is_set()
        self._resend.clear()
        try:
            due = self._worker.outbound(again=again)
            self._broker.publish(due)
            self.sent += len(due)
            if again:
                self._ask_again()
        except Exception:
            if again:
                self._resend.set()
            raise

    def _ask_again(self) -> None:
        """Have machines send what they had on their way while nobody listened, before their own time is up."""
        for some in self._worker.where_we_stand():
            self._broker.publish(some)
            if self._stopping.wait(STAND_EVERY_S):
                return
