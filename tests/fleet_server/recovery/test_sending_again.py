"""The shipped agent against ingest in a new epoch: it sends again what the server lost, and says what it no longer has."""

from datetime import timedelta
from pathlib import Path

import pytest

from device_agent import effects as ef
from device_agent import events as ev
from fleet_server.clock import FixedClock
from fleet_server.database import Database
from fleet_server.devices.gap_store import list_gaps
from fleet_server.faults.store import open_faults
from fleet_server.ingest.apply import STREAM_GAP
from fleet_server.ingest.worker import Message, Outbound, Worker
from fleet_server.ledger.audit import audit
from fleet_server.ledger.booking import COUNT_DUE
from protocol.codec import decode_ack, decode_batch
from protocol.messages import Ack, BatchHeader, Gap
from protocol.topics import Channel
from tests.device_agent.machines import NOON_MS, Bench
from tests.fleet_server.fixtures import NOW, send, send_bytes
from tests.fleet_server.machine import Machine
from tests.fleet_server.recovery.databases import backed_up, put_back, table

DAY_S = 86_400


class Line:
    """The wire between an agent on its bench and the worker of a server."""

    def __init__(self, bench: Bench, database: Database) -> None:
        self.bench, self.database = bench, database
        self.sent: list[bytes] = []
        self.announced = b""
        self.now = NOW
        self.server_restarts()

    def server_restarts(self) -> None:
        self.worker = Worker(self.database, FixedClock(self.now))

    def connect(self) -> None:
        self.bench.tell(ev.LinkUp())
        self.carry()

    def carry(self) -> None:
        """Hand over everything, both ways, until neither side has more to say."""
        while self.bench.asked:
            asked, self.bench.asked = self.bench.asked, []
            for effect in asked:
                if isinstance(effect, ef.Publish) and effect.qos:
                    self.sent += [effect.payload] if effect.channel is Channel.FACTS else []
                    self.announced = effect.payload if effect.channel is Channel.STATUS else self.announced
                    self.hear(self.up(effect.channel, effect.payload))

    def up(self, channel: Channel, payload: bytes) -> list[Outbound]:
        return self.worker.commit([Message(f"fleet/v1/HD-001/{channel}", payload)]).answers

    def hear(self, answers: list[Outbound]) -> None:
        for answer in answers:
            self.bench.tell(ev.MessageArrived(Channel.ACK, answer.payload))

    def stored(self) -> list[bytes]:
        return [bytes(line) for (line,) in table(self.database, "SELECT line FROM facts ORDER BY stream_no, seq")]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "outbox.sqlite")


@pytest.fixture
def line(bench: Bench, database: Database) -> Line:
    bench.loaded(("GOOD", 20))
    return Line(bench, database)


def clean(database: Database) -> bool:
    with database.begin() as connection:
        return audit(connection).differences == []


def faults(database: Database) -> set[str]:
    with database.begin() as connection:
        return {fault.code for fault in open_faults(connection, ["HD-001"])}


def headers(line: Line) -> list[BatchHeader]:
    return [decode_batch(payload).header for payload in line.sent]


@pytest.mark.parametrize("stays_connected", [True, False])
def test_an_idle_machine_sends_again_as_soon_as_the_server_hears_of_it(
    line: Line, tmp_path: Path, stays_connected: bool
) -> None:
    """One that stayed connected is heard of too: the broker retains what it announced."""
    line.connect()
    retained = line.announced
    backup = backed_up(line.database, tmp_path)
    for _ in range(3):
        line.bench.vend()
        line.carry()
    undisturbed = line.stored()
    put_back(line.database, backup)
    assert len(line.stored()) < len(undisturbed)
    line.server_restarts()
    if stays_connected:
        line.hear(line.up(Channel.STATUS, retained))
        line.carry()
    else:
        line.bench.tell(ev.LinkDown())
        line.connect()
    assert line.stored() == undisturbed
    assert line.bench.outbox.pending == 0
    assert not {STREAM_GAP, COUNT_DUE} & faults(line.database)
    assert clean(line.database)


def test_a_server_that_was_never_restored_says_nothing_unasked(line: Line) -> None:
    line.bench.tell(ev.LinkUp())
    (status,) = [e for e in line.bench.asked if isinstance(e, ef.Publish) and e.channel is Channel.STATUS]
    assert line.up(Channel.STATUS, status.payload) == []


def test_a_machine_that_has_given_up_old_facts_goes_on_from_the_oldest_it_has(line: Line, tmp_path: Path) -> None:
    """Older than 90 days: lost, said so, and a count is due; what came later is all there."""
    backup = backed_up(line.database, tmp_path)
    line.connect()
    for _ in range(3):
        line.bench.vend()
    line.carry()
    given_up = len(line.stored())
    line.bench.passes(91 * DAY_S)
    line.now += timedelta(days=91)  # the age of a fact is judged by the server's clock
    line.server_restarts()
    for _ in range(2):
        line.bench.vend()
        line.carry()
    kept = line.bench.outbox.oldest_kept()
    assert kept == given_up + 1
    undisturbed = line.stored()
    line.bench.power_cut().start()
    put_back(line.database, backup)
    line.server_restarts()
    line.connect()
    assert {(h.first_seq, h.oldest) for h in headers(line) if h.oldest or h.first_seq == kept} >= {(kept, True)}
    assert line.stored()[: len(undisturbed) - given_up] == undisturbed[given_up:]
    assert line.bench.outbox.pending == 0
    with line.database.begin() as connection:
        (gap,) = list_gaps(connection)
    assert (gap.stream_no, gap.first_seq, gap.last_seq) == (1, 1, given_up)
    assert faults(line.database) >= {STREAM_GAP, COUNT_DUE}
    assert clean(line.database)


def test_a_fact_of_a_clock_far_behind_is_given_up_in_its_turn_only(bench: Bench) -> None:
    """A hole in the middle of the outbox would look like damage at the next start."""
    bench.loaded(("GOOD", 20))
    bench.trusted = False
    bench.now_ms = 86_400_000
    bench.vend()
    bench.trusted = True
    bench.now_ms = NOON_MS + 1
    bench.vend()
    before = bench.outbox.oldest_kept(), list(bench.outbox.lines_after(0))
    bench.outbox.acknowledge(bench.outbox.last_seq, 1, bench.now_ms)
    assert (bench.outbox.oldest_kept(), list(bench.outbox.lines_after(0))) == before
    bench.power_cut()
    assert list(bench.outbox.lines_after(0)) == before[1]


def test_a_stream_that_this_server_never_heard_of_may_begin_in_its_middle(database: Database) -> None:
    machine = Machine().vend().vend().vend().vend()
    (reply,) = send_bytes(database, "HD-001", machine.batch(3, oldest=True))
    assert isinstance(reply.message, Ack)
    assert (reply.message.through_seq, reply.message.digest) == (4, machine.digests[4].hex())
    assert faults(database) >= {STREAM_GAP, COUNT_DUE}
    assert clean(database)


def test_a_late_repeat_from_inside_a_gap_is_no_fork(database: Database) -> None:
    machine = Machine()
    for _ in range(8):
        machine.vend()
    send(database, machine, 1, 2)
    (reply,) = send_bytes(database, "HD-001", machine.batch(6, oldest=True))
    assert isinstance(reply.message, Ack)
    for cut in ((1, 8), (2, 4), (4, 7), (5, 6), (1, 2), (7, 8)):
        (reply,) = send(database, machine, *cut)
        assert isinstance(reply.message, Ack), cut
        assert reply.message.through_seq == 8
    assert len(table(database, "SELECT * FROM facts")) == 5
    assert "STREAM_FORKED" not in faults(database)
    assert clean(database)


def test_a_restored_card_is_still_a_fork_after_a_gap(database: Database) -> None:
    machine = Machine().vend().vend().vend().vend()
    send_bytes(database, "HD-001", machine.batch(3, oldest=True))
    other = Machine(stream_id=machine.stream_id).vend().vend().vend()
    other.lines[2] = machine.lines[0].replace(b"delivered", b"jam")
    send(database, other, 3, 3)
    assert "STREAM_FORKED" in faults(database)


def test_without_the_machines_word_a_gap_stays_a_gap(database: Database) -> None:
    machine = Machine().vend().vend().vend()
    (reply,) = send(database, machine, 3)
    assert isinstance(reply.message, Gap)
    assert table(database, "SELECT * FROM stream_gaps") == []


def test_an_answer_says_nothing_of_a_batch_that_nobody_sent(line: Line, tmp_path: Path) -> None:
    line.connect()
    put_back(line.database, backed_up(line.database, tmp_path))
    line.server_restarts()
    line.bench.tell(ev.LinkDown(), ev.LinkUp())
    (status,) = [e for e in line.bench.asked if isinstance(e, ef.Publish) and e.channel is Channel.STATUS]
    (answer,) = line.up(Channel.STATUS, status.payload)
    said = decode_ack(answer.payload)
    assert said.sent_at_ms is None
    assert said.through_seq == line.bench.outbox.acked_through
