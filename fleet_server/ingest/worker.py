"""What ingest does with messages, whatever carries them: commit, answer, and compose what waits for machines."""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import chain
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self

import structlog

from fleet_server.clock import Clock
from fleet_server.database import Connection, Database
from fleet_server.devices import arrivals, outgoing_store, store
from fleet_server.devices.machines import Announcement, Answer, Outgoing
from fleet_server.ingest import metrics
from fleet_server.ingest.answers import Reply
from fleet_server.ingest.apply import USELESS_MAX, Received, Transaction, stand
from fleet_server.ingest.outbound import compose
from protocol.codec import CodecError, decode_status, decode_vitals, encode
from protocol.messages import Ack, Gap, Vitals
from protocol.topics import Channel, TopicError, parse, topic
from protocol.versions import MESSAGE_BYTES_MAX

ANNOUNCEMENTS_MAX: Final = 8
"""Of one machine in one transaction: the last ones tell where it is."""
STREAMS_AT_ONCE_MAX: Final = 500
"""In which `where_we_stand` tells where we stand: their machines answer with all that they have on their way."""

log = structlog.get_logger()

_parse = lru_cache(100_000)(parse)
"""A fleet has few topics, and each is read for every message."""


class Message(NamedTuple):
    """A message as it arrived."""

    topic: str
    payload: bytes


class Arrived(Protocol):
    """Anything with a topic and a payload."""

    @property
    def topic(self) -> str: ...
    @property
    def payload(self) -> bytes: ...


class Outbound(NamedTuple):
    """A message to a machine."""

    topic: str
    payload: bytes
    retain: bool = False


@dataclass
class Committed:
    """What one transaction has made true: the answers, and whether something may now wait for a machine."""

    answers: list[Outbound]
    news: bool


def _to_machine(reply: Reply) -> Outbound:
    return Outbound(topic(reply.dispenser_id, Channel.ACK), encode(reply.message))


class Work:
    """One open transaction of ingest. However messages are cut into transactions, the results are the same.

    It holds the lock of every machine it has heard of: whoever else moves their stock waits until it ends. After an exception
    only `close` is left; what was taken comes again, because nobody was told otherwise.
    """

    def __init__(self, connection: Connection, now: Callable[[], datetime], epoch: int) -> None:
        self._connection, self._now, self._epoch = connection, now, epoch
        self._transaction = Transaction(connection, epoch)
        self._announcements: dict[str, deque[Announcement]] = defaultdict(lambda: deque(maxlen=ANNOUNCEMENTS_MAX))
        self._readings: list[tuple[str, Vitals, datetime]] = []
        self._dead: list[tuple[str, bytes, str, datetime]] = []
        self._answers: list[Outbound] = []
        self._heard_facts = False

    def take(self, messages: Sequence[Arrived]) -> list[Outbound]:
        """Apply messages in the order of their arrival, in memory; returns the answers that they have once `commit` returns.

        Until then the answers are not true: nobody may hear them who would act on them after a crash.
        """
        now = self._now()
        facts: list[Received] = []
        unread: Counter[str] = Counter()
        for message in messages:
            if unread and unread[message.topic] >= USELESS_MAX:
                self._transaction.tally.dropped += 1
                continue
            try:
                where = _parse(message.topic)
                match where.channel:
                    case Channel.FACTS:
                        facts.append(Received(message.topic, where.dispenser_id, message.payload))
                    case Channel.VITALS:
                        self._readings.append((where.dispenser_id, decode_vitals(message.payload), now))
                    case _:
                        said = decode_status(message.payload)
                        self._announcements[where.dispenser_id].append(
                            Announcement(where.dispenser_id, said.stream_id, said.session, said.online, now)
                        )
            except (CodecError, TopicError) as error:
                unread[message.topic] += 1
                self._dead.append((message.topic, message.payload, str(error), now))
        self._heard_facts |= bool(facts)
        announced = {name: said[-1].stream_id for name, said in self._announcements.items() if said[-1].online}
        replies = self._transaction.take(facts, now, announced)
        answers = [_to_machine(reply) for reply in replies]
        self._answers += answers
        return answers

    def commit(self) -> Committed:
        """Write everything and commit; what `take` returned is now true, and returned once more."""
        now = self._now()
        arrivals.keep_dead_letters(self._connection, self._dead)
        arrivals.record_vitals(self._connection, self._readings)
        came_up = store.announce(self._connection, [*chain(*self._announcements.values())]) > 0
        self._transaction.write(now)
        self._say_where_we_stand(now)
        self._connection.commit()
        self.close()
        metrics.count(self._transaction.tally, len(self._dead))
        return Committed(self._answers, came_up or self._heard_facts)

    def _say_where_we_stand(self, now: datetime) -> None:
        """Tell machines that announced themselves: one with nothing to send would learn at its next fact only that it is to send again."""
        streams = [
            (said[-1].dispenser_id, said[-1].stream_id) for said in self._announcements.values() if said[-1].online
        ]
        if self._epoch == 1 or not streams:
            return
        self._answers += map(_to_machine, stand(self._connection, Ack, streams, now, self._epoch))

    def close(self) -> None:
        """End the transaction; what is not committed never was."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Worker:
    """Correct beside any number of others: the cursor row decides."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock

    def begin(self) -> Work:
        """Open a transaction that may take messages many times before it commits; it is closed by a `with` block."""
        connection = self._database.open()
        try:
            # Each time: a database that was away may have been restored meanwhile, and to an older epoch no machine listens.
            epoch = store.server_epoch(connection)
        except BaseException:
            connection.close()
            raise
        return Work(connection, self._clock.now, epoch)

    def commit(self, messages: Sequence[Arrived]) -> Committed:
        """Apply messages in one transaction, in the order of their arrival; the answers are true once this returns."""
        with self.begin() as work:
            work.take(messages)
            return work.commit()

    def bury(self, message: Arrived, error: Exception) -> None:
        """Keep a message that can never be applied, so that it stands in nobody's way."""
        metrics.DEAD_LETTERS.inc()
        with self._database.begin() as connection:
            letter = (message.topic, message.payload, f"{type(error).__name__}: {error}"[:500], self._clock.now())
            arrivals.keep_dead_letters(connection, [letter])

    def where_we_stand(self) -> Iterator[list[Outbound]]:
        """Yield, some streams at a time, a `gap` for the last stream that each machine announced.

        For who has just begun to listen: what was sent before is lost, and machines would wait for its answer in vain.
        """
        with self._database.begin() as connection:
            sessions = store.all_presence(connection).values()
        streams = sorted((session.dispenser_id, session.stream_id) for session in sessions)
        for first in range(0, len(streams), STREAMS_AT_ONCE_MAX):
            some = streams[first : first + STREAMS_AT_ONCE_MAX]
            with self._database.begin() as connection:
                told = stand(connection, Gap, some, self._clock.now(), store.server_epoch(connection))
            yield [_to_machine(reply) for reply in told]

    def outbound(self, *, again: bool = False) -> list[Outbound]:
        """Return what waits for machines and mark it as sent; `again` also what was sent in a connection that is gone."""
        now = self._clock.now()
        with self._database.begin() as connection:
            if again:
                outgoing_store.forget_sent(connection)
            composed: list[Outbound] = []
            sent: list[tuple[int, str, int]] = []
            impossible: list[Answer] = []
            for message, stream_id, session, since in outgoing_store.due(connection, now):
                try:
                    composed.append(_outbound(message, stream_id, session, since))
                except ValueError as error:
                    # One that can never be sent must not hold up those of all other machines.
                    log.warning("message cannot be sent", dispenser=message.dispenser_id, channel=message.channel)
                    reason = f"cannot be sent: {error}"[:200]
                    answer = (message.dispenser_id, message.channel, message.key, "refused", reason, now)
                    impossible.append(Answer(*answer))
                else:
                    sent.append((message.id, stream_id, session))
            outgoing_store.mark_sent(connection, sent, now)
            outgoing_store.answer(connection, impossible)
        return composed


def _outbound(message: Outgoing, stream_id: str, session: int, since: datetime) -> Outbound:
    """Write a message for a machine's session; raises ValueError for one that no machine could read."""
    payload = encode(compose(message, stream_id, session, since))
    if len(payload) > MESSAGE_BYTES_MAX:
        msg = f"{len(payload)} bytes: expected at most {MESSAGE_BYTES_MAX}"
        raise ValueError(msg)
    where = topic(message.dispenser_id, message.channel)
    return Outbound(where, payload, retain=message.channel is Channel.DESIRED)
