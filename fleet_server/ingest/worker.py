"""What ingest does with messages, whatever carries them: commit, answer, and compose what waits for machines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fleet_server.clock import Clock
from fleet_server.database import Connection, Database
from fleet_server.devices import outgoing_store, store
from fleet_server.ingest import metrics
from fleet_server.ingest.apply import Received, apply
from fleet_server.ingest.outbound import compose
from protocol.codec import CodecError, decode_status, decode_vitals, encode
from protocol.messages import Vitals
from protocol.topics import Channel, TopicError, parse, topic


class Message(NamedTuple):
    """A message as it arrived."""

    topic: str
    payload: bytes


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


class Worker:
    """Correct beside any number of others: the cursor row decides."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock
        self._epoch: int | None = None

    def commit(self, messages: Sequence[Message]) -> Committed:
        """Apply messages in one transaction, in the order of their arrival; the answers are true once this returns."""
        now = self._clock.now()
        facts: list[Received] = []
        vitals: dict[str, Vitals] = {}
        dead: list[tuple[str, bytes, str]] = []
        came_up = False
        with self._database.begin() as connection:
            for message in messages:
                try:
                    where = parse(message.topic)
                    match where.channel:
                        case Channel.FACTS:
                            facts.append(Received(message.topic, where.dispenser_id, message.payload))
                        case Channel.VITALS:
                            vitals[where.dispenser_id] = decode_vitals(message.payload)
                        case _:
                            status = decode_status(message.payload)
                            came_up |= store.announce(connection, where.dispenser_id, status, now)
                except (CodecError, TopicError) as error:
                    dead.append((message.topic, message.payload, str(error)))
            store.keep_dead_letters(connection, dead, now)
            store.record_vitals(connection, vitals, now)
            replies, tally = apply(connection, facts, now, self._read_epoch(connection)) if facts else ([], None)
        metrics.count(tally, len(dead))
        answers = [Outbound(topic(reply.dispenser_id, Channel.ACK), encode(reply.message)) for reply in replies]
        return Committed(answers, came_up or bool(facts))

    def _read_epoch(self, connection: Connection) -> int:
        if self._epoch is None:
            self._epoch = store.server_epoch(connection)
        return self._epoch

    def bury(self, message: Message, error: Exception) -> None:
        """Keep a message that can never be applied, so that it stands in nobody's way."""
        metrics.DEAD_LETTERS.inc()
        with self._database.begin() as connection:
            letter = (message.topic, message.payload, f"{type(error).__name__}: {error}"[:500])
            store.keep_dead_letters(connection, [letter], self._clock.now())

    def outbound(self, *, again: bool = False) -> list[Outbound]:
        """Return what waits for machines and mark it as sent; `again` also what was sent in a connection that is gone."""
        now = self._clock.now()
        with self._database.begin() as connection:
            if again:
                outgoing_store.forget_sent(connection)
            due = outgoing_store.due(connection, now)
            composed = [
                Outbound(
                    topic(message.dispenser_id, message.channel),
                    encode(compose(message, stream_id, session, since)),
                    retain=message.channel is Channel.DESIRED,
                )
                for message, stream_id, session, since in due
            ]
            outgoing_store.mark_sent(connection, [(m.id, stream_id, session) for m, stream_id, session, _ in due], now)
        return composed
