"""However messages are cut into transactions, the database and the answers are the same."""

import random
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from fleet_server.clock import FixedClock
from fleet_server.database import Database
from fleet_server.ingest.worker import Message, Outbound, Worker
from fleet_server.ledger.audit import audit
from protocol.codec import decode_ack, encode
from protocol.messages import (
    Ack,
    ConfigApplied,
    Count,
    FaultCleared,
    FaultRaised,
    LotPacks,
    OrderOutcome,
    OrderResult,
    Outcome,
    Refill,
    Status,
    StockLevel,
    Vitals,
)
from tests.fleet_server.fixtures import NOW, enter, operation, plant
from tests.fleet_server.machine import BASE_MS, Machine

Moment = list[Message]
"""Messages that arrive at one moment of the clock."""

# Everything that ingest writes, but for numbers that count up by arrival, and what machines are told of their books: that is
# one message for whatever one transaction changed.
WRITTEN = {
    "facts": "*",
    "streams": "*",
    "forked_facts": "*",
    "movements": "*",
    "balances": "*",
    "slot_books": "*",
    "door_sessions": "*",
    "presence": "*",
    "vitals": "*",
    "vitals_history": "*",
    "dead_letters": "topic, payload, reason, received_at",
    "faults": "dispenser_id, slot, code, source, detail, opened_at, cleared_at",
    "operations": "dispenser_id, session, step, state, stream_no, seq",
    "outgoing": "dispenser_id, channel, payload->>'kind', created_at, answered_at, answer, answer_detail",
}
BUT = {"outgoing": "channel <> 'books'", "balances": "units <> 0"}


@pytest.fixture
def other(another_database_url: str) -> Iterator[Database]:
    opened = Database(another_database_url)
    plant(opened)
    yield opened
    opened.close()


def everything(database: Database) -> dict[str, list[Any]]:
    found = {}
    with database.begin() as connection:
        for table, columns in WRITTEN.items():
            rows = connection.execute(text(f"SELECT {columns} FROM {table} WHERE {BUT.get(table, 'true')}"))
            found[table] = sorted(map(repr, rows))
    return found


def message(machine: Machine, payload: bytes, channel: str = "facts") -> Message:
    return Message(f"fleet/v1/{machine.dispenser_id}/{channel}", payload)


def live(machine: Machine, throw: random.Random) -> None:
    """Let something happen at a machine."""
    slot = throw.choice([1, 2])
    match throw.randrange(12):
        case 0:
            machine.door(throw.choice(["111111", "222222", "333333"]))
        case 1:
            machine.tell(Count(**machine.when(), slot=slot, counted=throw.randrange(8)))
        case 2:
            added = [LotPacks(lot=throw.choice(["L1", "L2"]), packs=throw.randint(1, 9))]
            machine.tell(Refill(**machine.when(), slot=slot, product="CONDOM-M", added=added))
        case 3:
            kind = throw.choice([FaultRaised, FaultCleared])
            machine.tell(kind(**machine.when(), code=throw.choice(["SLOT_JAM", "DOOR_LEFT_OPEN"]), slot=slot))
        case 4:
            machine.tell(OrderResult(**machine.when(), order_id="f" * 32, outcome=throw.choice([*OrderOutcome])))
        case 5:
            machine.tell(ConfigApplied(**machine.when(), what="desired", version=1, applied=throw.random() < 0.5))
        case 6:
            machine.tell(StockLevel(**machine.when(), slots=[]))
        case 7:
            machine.tell_line(b'{"kind":"sublimated"}')
        case _:
            machine.vend(slot, throw.choice([Outcome.DELIVERED, Outcome.UNVERIFIED, Outcome.IN_DOUBT, Outcome.JAM]))


def history(throw: random.Random) -> list[Moment]:
    """Some days of two machines and a stranger, with everything that a transport and a bad card can do to them."""
    machines = [Machine("HD-001"), Machine("HD-002"), Machine("HD-999")]
    moments: list[Moment] = []
    for _ in range(40):
        moment: Moment = []
        for place, machine in enumerate(machines):
            for _ in range(throw.randrange(6)):
                live(machine, throw)
            if throw.random() < 0.03:  # a new card
                machine = machines[place] = Machine(machine.dispenser_id).vend()  # noqa: PLW2901 - from here on
            moment += [message(machine, payload) for payload in batches(machine, throw)]
            moment += [message(machine, *said) for said in chatter(machine, throw)]
        throw.shuffle(moment)
        moments.append(moment)
    moments.append([message(machine, machine.batch(first, first + 49)) for machine in machines
                    for first in range(1, len(machine.lines) + 1, 50)])  # fmt: skip
    return moments


def batches(machine: Machine, throw: random.Random) -> Iterator[bytes]:
    last = len(machine.lines)
    if not last:
        return
    for _ in range(throw.randrange(4)):
        first = throw.randint(max(1, last - 12), last)
        yield machine.batch(first, throw.randint(first, last))
    match throw.randrange(12):
        case 0:
            yield b"garbage"
        case 1:
            yield machine.batch(last).replace(b'"prev_digest":"', b'"prev_digest":"0', 1)
        case 2:  # a chain that does not add up
            yield machine.batch(last).replace(machine.digests[last - 1].hex().encode(), b"ab" * 32)
        case 3:  # a restored card
            old = Machine(machine.dispenser_id, machine.stream_id)
            for line in machine.lines[: last // 2]:
                old.tell_line(line)
            yield old.vend(2).vend(2).batch(max(1, last // 2))
        case _:
            pass


def chatter(machine: Machine, throw: random.Random) -> Iterator[tuple[bytes, str]]:
    if throw.random() < 0.3:
        session, at_ms = throw.randint(1, 5), BASE_MS
        said = Status(stream_id=machine.stream_id, session=session, online=throw.random() < 0.5, at_ms=at_ms)
        yield encode(said), "status"
    for _ in range(throw.randrange(3)):
        at_ms = BASE_MS + throw.randrange(48 * 3_600_000)
        yield vitals(machine, at_ms, throw.randint(0, 40)), "vitals"
    if throw.random() < 0.05:
        yield b"garbage", throw.choice(["vitals", "status", "nonsense"])


def vitals(machine: Machine, at_ms: int, temperature_c: int) -> bytes:
    read: dict[str, Any] = {"stream_id": machine.stream_id, "session": 1, "agent_version": "1", "pending_facts": 0}
    return encode(Vitals(**read, at_ms=at_ms, temperature_c=temperature_c))


def singly(database: Database, moments: list[Moment]) -> list[Outbound]:
    clock = FixedClock(NOW)
    worker = Worker(database, clock)
    answers = []
    for number, moment in enumerate(moments):
        clock.set(NOW + timedelta(minutes=number))
        for one in moment:
            answers += worker.commit([one]).answers
    return answers


def cut(database: Database, moments: list[Moment], throw: random.Random) -> list[Outbound]:
    """Take and commit at random: transactions stay open over moments, and end within them."""
    clock = FixedClock(NOW)
    worker = Worker(database, clock)
    taken: list[Outbound] = []
    committed: list[Outbound] = []
    work = worker.begin()
    for number, moment in enumerate(moments):
        clock.set(NOW + timedelta(minutes=number))
        rest = moment
        while rest:
            size = throw.randint(1, len(rest))
            taken += work.take(rest[:size])
            rest = rest[size:]
            if throw.random() < 0.15:
                committed += work.commit().answers
                work = worker.begin()
    committed += work.commit().answers
    assert committed == taken
    return taken


def heard(answers: list[Outbound]) -> tuple[dict[Any, Any], set[Any]]:
    """What the machines know in the end: of several answers to a stream, one transaction gives the last of each kind."""
    last, quarantined = {}, set()
    for answer in answers:
        message = decode_ack(answer.payload)
        last[answer.topic, message.stream_id, message.kind] = message.model_copy(update={"quarantined": []})
        if isinstance(message, Ack):
            quarantined |= {(answer.topic, message.stream_id, seq) for seq in message.quarantined}
    return last, quarantined


@pytest.mark.parametrize("seed", range(5))
def test_any_cut_into_transactions_gives_the_same_rows_and_answers(
    database: Database, other: Database, seed: int
) -> None:
    throw = random.Random(seed)
    moments = history(throw)
    for one in (database, other):
        enter(one, *(
            operation("refill", session, step, slot=slot, lot="L1", packs=5, operation_id=f"{step:032x}")
            for step, (session, slot) in enumerate((s, n) for s in ("111111", "222222") for n in (1, 2))
        ))  # fmt: skip
        with one.begin() as connection:
            connection.execute(
                text("INSERT INTO outgoing (dispenser_id, channel, key, payload, created_at) VALUES"
                     " ('HD-001', 'orders', :order, '{}', :now), ('HD-002', 'desired', '1', '{}', :now)"),
                {"order": "f" * 32, "now": NOW},
            )  # fmt: skip
    assert heard(singly(database, moments)) == heard(cut(other, moments, throw)), f"seed {seed}"
    found, expected = everything(other), everything(database)
    for table in WRITTEN:
        assert found[table] == expected[table], f"{table}, seed {seed}"
    assert all(expected[table] for table in WRITTEN if table != "forked_facts"), f"an idle table, seed {seed}"
    for one in (database, other):
        with one.begin() as connection:
            assert audit(connection).differences == [], f"seed {seed}"


def test_a_transaction_that_is_not_committed_leaves_nothing_and_can_be_taken_again(database: Database) -> None:
    worker = Worker(database, FixedClock(NOW))
    machine = Machine().vend().vend()
    with worker.begin() as work:
        provisional = work.take([message(machine, machine.batch())])
    assert all(not rows for table, rows in everything(database).items() if table in {"facts", "streams", "presence"})
    assert worker.commit([message(machine, machine.batch())]).answers == provisional


def test_every_hour_of_a_backlog_of_vitals_is_kept_and_the_last_reading_of_each(database: Database) -> None:
    machine = Machine()
    half_hours = [vitals(machine, BASE_MS + n * 1_800_000, n) for n in range(24)]
    Worker(database, FixedClock(NOW)).commit([message(machine, payload, "vitals") for payload in half_hours])
    with database.begin() as connection:
        query = text("SELECT (reading->>'temperature_c')::float FROM vitals_history ORDER BY hour")
        kept = list(connection.execute(query).scalars())
        assert connection.execute(text("SELECT reading->>'temperature_c' FROM vitals")).scalar_one() == "23.0"
    assert kept == list(range(1, 24, 2))
