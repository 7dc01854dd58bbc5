"""Under load and abuse: bounded memory, nobody waits for a machine that floods, poison is kept aside, several workers stay correct."""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from fleet_server.clock import FixedClock
from fleet_server.database import Database
from fleet_server.devices import fleet as registry
from fleet_server.embedded import BrokerAddress
from fleet_server.ingest.apply import FACTS_MAX, USELESS_MAX
from fleet_server.ingest.service import IngestService
from fleet_server.ingest.worker import Committed, Message, Worker
from fleet_server.ledger.audit import audit
from protocol.codec import decode_ack, encode, encode_fact
from protocol.messages import Ack, FaultRaised, Outcome, Status, Vend
from tests.benchmarks.bare_mqtt import BareClient
from tests.fleet_server.fixtures import NOW
from tests.fleet_server.ingest.serving import PATIENCE_S, address_of, serving, until
from tests.fleet_server.machine import BASE_MS, Machine
from tests.reliability.forks import Child

WINDOW = 4

pytestmark = pytest.mark.slow


@contextmanager
def worker_process(url: str, broker: BrokerAddress, log: Path, share: str | None = None) -> Iterator[Child]:
    """One ingest worker in a process of its own."""

    def run() -> None:
        service = IngestService(Database(url), FixedClock(NOW), address_of(broker), share=share)
        service.start()
        until(lambda: service.connected, "ingest is connected")
        print("connected", flush=True)  # noqa: T201 - the test reads it
        while True:
            time.sleep(1)

    child = Child(run, log).go()
    try:
        until(lambda: child.ended() is not None or (log.exists() and "connected" in log.read_text()), "ingest starts")
        assert child.ended() is None, log.read_text()
        yield child
    finally:
        child.kill()


class Line:
    """Machines' side of the broker: a small window ahead of the acknowledgements, sent again from there when nothing comes."""

    def __init__(self, broker: BrokerAddress, machines: Sequence[Machine]) -> None:
        self.client = BareClient(broker, "fleet", "load-machines")
        self.listener = BareClient(broker, "fleet", "load-acks")
        self.listener.subscribe("fleet/v1/+/ack")
        self.through = {machine.stream_id: 0 for machine in machines}
        self.quarantined = 0
        self.kinds: set[str] = set()

    def hear(self, seconds: float) -> bool:
        """Take the answers that come; whether any came."""
        heard = False
        while self.listener.ready(seconds):
            for payload in self.listener.receive():
                ack = decode_ack(payload)
                if ack.stream_id in self.through:
                    self.kinds.add(ack.kind)
                    self.through[ack.stream_id] = max(self.through[ack.stream_id], ack.through_seq)
                    heard = True
                    self.quarantined += len(ack.quarantined) if isinstance(ack, Ack) else 0
        return heard

    def deliver(self, machines: Sequence[Machine], throw: random.Random) -> None:
        """Send until everything is acknowledged."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            sent = [batch for machine in machines for batch in self._window(machine, throw)]
            if not sent:
                return
            assert time.monotonic() < deadline, f"{sum(self.through.values())} facts are acknowledged"
            self.client.publish_all(sent)
            self.hear(0.2)

    def _window(self, machine: Machine, throw: random.Random) -> Iterator[tuple[str, bytes]]:
        first = self.through[machine.stream_id] + 1
        for _ in range(WINDOW):
            if first <= len(machine.lines):
                last = min(len(machine.lines), first + throw.randint(0, 30))
                yield f"fleet/v1/{machine.dispenser_id}/facts", machine.batch(first, last)
                first = last + 1

    def close(self) -> None:
        self.client.close()
        self.listener.close()


def register(database: Database, machines: Sequence[Machine]) -> None:
    with database.begin() as connection:
        registry.add_dispensers(connection, [
            registry.Dispenser(machine.dispenser_id, "点位", "Site", "街道", "Street", "370211001", "community", "indoor",
                               36.0, 120.1, 0, 24, "HUANGDAO", None, None, "")
            for machine in machines
        ])  # fmt: skip


def count(database: Database, query: str) -> int:
    with database.begin() as connection:
        return int(connection.execute(text(query)).scalar_one())


def audited(database: Database) -> list[str]:
    with database.begin() as connection:
        return [str(difference) for difference in audit(connection).differences]


# ---------------------------------------------------------------- several workers


@pytest.mark.parametrize("share", [None, "ingest"])
def test_three_workers_at_once_book_every_fact_once(
    database: Database, database_url: str, request: pytest.FixtureRequest, tmp_path: Path, share: str | None
) -> None:
    """Without a share each of the three is sent everything; with one the broker deals the batches of a stream out among them."""
    broker: BrokerAddress = request.getfixturevalue("mosquitto" if share else "broker")
    seed = 4
    throw = random.Random(seed)
    machines = [Machine(f"LD-{number:02}") for number in range(12)]
    register(database, machines)
    for machine in machines:
        for _ in range(150):
            machine.vend(throw.choice([1, 2]), throw.choice([Outcome.DELIVERED, Outcome.UNVERIFIED, Outcome.JAM]))
    with ExitStack() as stack:
        children = [
            stack.enter_context(worker_process(database_url, broker, tmp_path / f"{number}.log", share))
            for number in range(3)
        ]
        line = Line(broker, machines)
        line.deliver(machines, throw)
        line.close()
        assert [child.ended() for child in children] == [None] * 3
    assert count(database, "SELECT count(*) FROM facts") == 12 * 150, f"seed {seed}"
    assert count(database, "SELECT count(*) FROM dead_letters") == 0, f"seed {seed}"
    assert audited(database) == [], f"seed {seed}"
    logs = "".join((tmp_path / f"{number}.log").read_text() for number in range(3))
    assert "cannot be applied" not in logs, logs[-2000:]


# ---------------------------------------------------------------- floods


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def test_a_flood_stays_in_the_broker_while_the_database_stands_still_and_nobody_has_to_send_again(
    database: Database, database_url: str, broker: BrokerAddress, tmp_path: Path
) -> None:
    """Neither is the standing worker taken for dead, nor do readings take the room of facts: then those would come late, and out of order."""
    honest = Machine("HD-001")
    for _ in range(20):
        honest.vend()
    messages = [("fleet/v1/HD-001/facts", honest.batch(n, n)) for n in range(1, 21)]
    flood = [("fleet/v1/HD-002/facts", b"\x00" * 60_000)] * 1_500 + [("fleet/v1/HD-002/vitals", b"{}")] * 15_000
    with worker_process(database_url, broker, tmp_path / "worker.log") as worker:
        line = Line(broker, [honest])
        with database.begin() as connection:
            connection.execute(text("LOCK TABLE dead_letters IN ACCESS EXCLUSIVE MODE"))
            line.client.publish_all([*flood, *messages[:10]])
            time.sleep(1)
        until(lambda: count(database, "SELECT count(*) FROM dead_letters") > 0, "the worker goes on")
        line.client.publish_all(messages[10:])
        until(lambda: line.hear(0.1) and line.through[honest.stream_id] == 20, "everything is acknowledged")
        assert line.kinds == {"ack"}
        line.close()
        assert worker.ended() is None
        assert resident_mib(worker.pid) < 300
    assert "connection lost" not in (tmp_path / "worker.log").read_text()


def useless(machine: Machine, throw: random.Random) -> bytes:
    """Garbage, a duplicate, or a batch beyond a gap."""
    last = len(machine.lines)
    return throw.choice([b"garbage", machine.batch(1, 1), machine.batch(last)])


@pytest.mark.parametrize("kind", ["useless", "facts"])
def test_one_machine_that_floods_costs_each_transaction_no_more_than_its_share(database: Database, kind: str) -> None:
    """Fairness in transactions, not in seconds: of a flood only so much is read, and the others are answered in the same one."""
    seed = 7
    throw = random.Random(seed)
    hostile, honest = Machine("HD-002"), Machine("HD-001").vend().vend()
    for _ in range(3 * FACTS_MAX if kind == "facts" else 100):
        hostile.vend()
    if kind == "useless":
        payloads = [useless(hostile, throw) for _ in range(4_000)]
    else:
        payloads = [hostile.batch(first, first + 99) for first in range(1, len(hostile.lines), 100)]
    flood = [Message("fleet/v1/HD-002/facts", payload) for payload in payloads]
    flood += [
        Message("fleet/v1/HD-002/status", encode(Status(stream_id="a" * 32, session=n, online=True, at_ms=BASE_MS)))
        for n in range(500)
    ]
    flood += [Message("fleet/v1/HD-002/vitals", b"garbage")] * 500
    throw.shuffle(flood)
    if kind == "facts":  # in their order, among the rest: out of it they would be as useless
        in_order = iter(payloads)
        flood = [m._replace(payload=next(in_order)) if m.topic.endswith("/facts") else m for m in flood]
    worker = Worker(database, FixedClock(NOW))
    with worker.begin() as work:
        answers = work.take([*flood, Message("fleet/v1/HD-001/facts", honest.batch())])
        work.commit()
    acks = [decode_ack(answer.payload) for answer in answers if "HD-001" in answer.topic]
    assert [(ack.kind, ack.through_seq) for ack in acks] == [("ack", 2)]
    assert len(answers) <= 5  # at most one of each kind to the flood
    assert count(database, "SELECT count(*) FROM dead_letters") <= 2 * USELESS_MAX
    facts = count(database, "SELECT count(*) FROM facts WHERE dispenser_id = 'HD-002'")
    assert facts == FACTS_MAX if kind == "facts" else facts < len(hostile.lines), f"seed {seed}"
    # What was not read is still the machine's: it sends again, and loses nothing.
    while count(database, "SELECT count(*) FROM facts WHERE dispenser_id = 'HD-002'") < len(hostile.lines):
        through = count(database, "SELECT through_seq FROM streams WHERE dispenser_id = 'HD-002'")
        worker.commit([Message("fleet/v1/HD-002/facts", hostile.batch(through + 1, through + 100))])
    assert audited(database) == []


def test_an_honest_machine_waits_for_a_bounded_number_of_transactions_behind_a_flood(
    database: Database, database_url: str, broker: BrokerAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Machine("HD-001").vend()
    flood = [("fleet/v1/HD-002/facts", b"garbage")] * 12_000
    transactions: list[int] = []
    commit = Worker.commit

    def counted(worker: Worker, messages: Sequence[Message]) -> Committed:
        transactions.append(len(messages))
        return commit(worker, messages)

    monkeypatch.setattr(Worker, "commit", counted)
    with serving(database_url, broker):
        line = Line(broker, [honest])
        with database.begin() as connection:
            connection.execute(text("LOCK TABLE dead_letters IN ACCESS EXCLUSIVE MODE"))
            line.client.publish_all([*flood, ("fleet/v1/HD-001/facts", honest.batch())])
            time.sleep(0.5)
        before = len(transactions)
        until(lambda: line.hear(0.1) and line.through[honest.stream_id] == 1, "the honest machine is answered")
        waited = len(transactions) - before
        line.close()
    # How many it takes is a matter of speed; that each takes many, and that nothing is taken twice, is not.
    assert waited <= len(flood) / 20, transactions
    assert sum(transactions) < len(flood) + 1_000, transactions
    assert count(database, "SELECT count(*) FROM dead_letters") <= USELESS_MAX * (len(transactions) + 1)


# ---------------------------------------------------------------- poison


def poison(machine: Machine, throw: random.Random) -> None:
    """A line that is a fact of the stream, and that no database or calendar can take as it is."""
    when = machine.when()
    match throw.randrange(7):
        case 0:
            machine.tell_line(bytes(throw.randrange(256) for _ in range(20)).replace(b"\n", b" "))
        case 1:
            machine.tell_line(b'{"kind":"sublimated"}')
        case 2:
            line = encode_fact(FaultRaised(**when, code="SLOT_JAM", detail="~"))
            machine.tell_line(line.replace(b"~", b"\\u0000"))
        case 3:
            machine.tell_line(encode_fact(FaultRaised(**when, code="SLOT_JAM", detail="~")).replace(b"~", b"\\ud800"))
        case 4:
            machine.tell(
                Vend(**when | {"at_ms": 2**53, "clock_trusted": throw.random() < 0.5}, slot=1, outcome=Outcome.JAM)
            )
        case 5:
            machine.tell(Vend(**when | {"mono_ms": 2**53, "clock_trusted": False}, slot=1, outcome=Outcome.JAM))
        case _:
            machine.tell(Vend(**when | {"mono_ms": 0, "clock_trusted": False}, slot=1, outcome=Outcome.JAM))


def test_a_thousand_poison_messages_are_kept_aside_and_the_streams_go_on(
    database: Database, database_url: str, broker: BrokerAddress
) -> None:
    """P5: lines that nothing can read, and envelopes of every bad shape, among the facts of two machines."""
    seed = 11
    throw = random.Random(seed)
    bad, good = Machine("HD-002"), Machine("HD-001")
    for _ in range(1_000):
        poison(bad, throw)
        if throw.random() < 0.2:
            good.vend()
    good.vend()
    bad.vend()
    read = {"v": 1, "stream_id": bad.stream_id, "session": 1, "at_ms": 2**53, "agent_version": "~", "pending_facts": 0}
    vitals = str(read).replace("'", '"').encode()
    envelopes = [
        ("facts", b""), ("facts", b"\xff" * 70_000), ("facts", good.batch(1, 1)), ("facts", b"{}\n{}"),
        ("vitals", b"\x00"), ("vitals", vitals), ("vitals", vitals.replace(b"~", b"\\u0000")), ("status", b"[]"),
        ("facts", bad.batch(1, 1)[1:]),
    ]  # fmt: skip
    with serving(database_url, broker):
        line = Line(broker, [bad, good])
        for _ in range(20):
            line.client.publish_all(
                [(f"fleet/v1/HD-002/{channel}", payload) for channel, payload in throw.sample(envelopes, 5)]
            )
            line.hear(0)
        line.deliver([bad, good], throw)
        line.close()
    stored = "SELECT count(*) FROM facts WHERE dispenser_id = 'HD-002'"
    assert count(database, stored) == len(bad.lines), f"seed {seed}"
    quarantined = count(database, f"{stored} AND kind IS NULL")
    assert 300 < quarantined < 1_000, f"seed {seed}"
    assert count(database, "SELECT count(*) FROM facts WHERE dispenser_id = 'HD-001'") == len(good.lines)
    assert count(database, "SELECT count(*) FROM dead_letters") > 0
    assert audited(database) == [], f"seed {seed}"
