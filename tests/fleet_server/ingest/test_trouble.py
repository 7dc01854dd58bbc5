"""The log names machine, stream and number of what went wrong, never what was said, and a storm is a line a minute."""

from typing import Any

from structlog.testing import capture_logs

from fleet_server.clock import FixedClock
from fleet_server.database import Database
from fleet_server.ingest import metrics
from fleet_server.ingest.trouble import EVERY_S, Teller, Trouble
from fleet_server.ingest.worker import Message, Worker
from tests.fleet_server.fixtures import NOW
from tests.fleet_server.machine import Machine

SECRET = "a-name-that-nobody-may-log"


def logged(database: Database, *payloads: bytes) -> list[dict[str, Any]]:
    worker = Worker(database, FixedClock(NOW))
    metrics.TELLER = Teller()
    with capture_logs() as lines:
        for payload in payloads:
            worker.commit([Message("fleet/v1/HD-001/facts", payload)])
    return [dict(line) for line in lines]


def test_quarantine_fork_and_gap_are_logged_with_their_place(database: Database) -> None:
    machine = Machine().vend()
    machine.lines.append(b'{"kind": "%s"}' % SECRET.encode())
    restored = Machine(stream_id=machine.stream_id).vend(slot=2)
    later = Machine(stream_id=machine.stream_id).vend().vend().vend().vend()
    lines = logged(database, machine.batch(1), restored.batch(1), later.batch(4))
    assert [(line["event"], line["dispenser"], line["stream"], line["seq"], line["facts"]) for line in lines] == [
        ("fact quarantined", "HD-001", 1, 2, 1),
        ("stream forked", "HD-001", 1, 1, 1),
        ("gap", "HD-001", 1, 3, 1),
    ]
    assert SECRET not in str(lines)


def test_a_thousand_gaps_of_a_machine_are_one_line_a_minute_and_hide_no_other_machine() -> None:
    teller = Teller()
    with capture_logs() as lines:
        for n in range(1000):
            teller.tell([Trouble("gap", "HD-001", 1, n)], n * 0.01)
        teller.tell([Trouble("gap", "HD-002", 1, 7), Trouble("stream forked", "HD-001", 1, 7)], 11)
        teller.tell([Trouble("gap", "HD-001", 1, 8)], EVERY_S + 1)
    assert [(line["dispenser"], line["event"], line["left_out"]) for line in lines] == [
        ("HD-001", "gap", 0),
        ("HD-002", "gap", 0),
        ("HD-001", "stream forked", 0),
        ("HD-001", "gap", 999),
    ]
