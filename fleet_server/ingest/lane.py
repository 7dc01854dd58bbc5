"""One of the lanes that ingest works in: while PostgreSQL is busy with the transaction of one, Python is with that of another."""

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from fleet_server.database import DatabaseError, is_disconnect
from fleet_server.ingest.broker import Delivery
from fleet_server.ingest.worker import Committed, Worker
from fleet_server.logs import Outage

LANES: Final = 2
READS_WAITING_MAX: Final = 16
"""Each holds what one read of the socket brought: some hundred KiB at most. What waits beyond that waits in the broker."""
TRANSACTION_MESSAGES_MAX: Final = 5_000
TRANSACTION_BYTES_MAX: Final = 1_500_000
"""A transaction takes what has come while the one before it was committed, up to about so much: 5,000 facts, or a quarter of a second."""
LOOK_EVERY_S: Final = 0.1
RETRY_DELAY_S: Final = 1.0

log = structlog.get_logger()


class Lane:
    """Commits what is put into `reads`, in a thread of its own; `on_commit` gets what is true then, and what it answers."""

    def __init__(self, worker: Worker, on_commit: Callable[[Sequence[Delivery], Committed], None]) -> None:
        self._worker, self._on_commit = worker, on_commit
        self.reads: queue.Queue[list[Delivery]] = queue.Queue(READS_WAITING_MAX)
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)
        self._stopping = threading.Event()
        self._outage = Outage("ingest")

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """Stop; what is not committed stays unacknowledged and comes again."""
        self._stopping.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                deliveries = self._take()
                if deliveries:
                    self._work(deliveries)
            except Exception:
                # Whatever it was, the messages are unacknowledged: machines send them again.
                log.exception("ingest failed; trying again")
                self._stopping.wait(RETRY_DELAY_S)

    def _take(self) -> list[Delivery]:
        """Wait for a message, then take along what else is there."""
        try:
            taken = self.reads.get(timeout=LOOK_EVERY_S)
        except queue.Empty:
            return []
        size = sum(len(delivery.payload) for delivery in taken)
        while len(taken) < TRANSACTION_MESSAGES_MAX and size < TRANSACTION_BYTES_MAX:
            try:
                more = self.reads.get_nowait()
            except queue.Empty:
                break
            size += sum(len(delivery.payload) for delivery in more)
            taken += more
        return taken

    def _work(self, deliveries: Sequence[Delivery]) -> None:
        """Commit deliveries together; where that fails for the data's sake, in halves, so that one cannot hold up the others."""
        while not self._stopping.is_set():
            try:
                committed = self._worker.commit(deliveries)
                self._outage.over()
                self._on_commit(deliveries, committed)
            except DatabaseError as error:
                if is_disconnect(error):
                    self._outage.note(error)
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
        self._worker.bury(delivery, error)
        self._on_commit(deliveries, Committed([], news=False))
