"""What waits for machines is sent to each, whatever stands in the way of a message to another."""

from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any

import pytest

from fleet_server.clock import FixedClock
from fleet_server.database import Database
from fleet_server.devices import outgoing
from fleet_server.devices.outgoing_store import latest_payloads
from fleet_server.ingest.worker import Message, Outbound, Worker
from fleet_server.ledger import lots
from fleet_server.ledger.telling import tell_desired
from protocol.codec import decode_books, decode_desired, encode
from protocol.messages import Status
from protocol.topics import Channel
from tests.fleet_server.fixtures import NOW, enter, operation, send
from tests.fleet_server.machine import BASE_MS, Machine

UNLOCK = "fleet/v1/HD-002/orders"


@pytest.fixture
def worker(database: Database) -> Worker:
    """Both machines are connected, and HD-002 waits for an order."""
    worker = Worker(database, FixedClock(NOW))
    for machine in (Machine().door("111111"), Machine("HD-002").vend()):
        send(database, machine)
        said = Status(stream_id=machine.stream_id, session=1, online=True, at_ms=BASE_MS)
        worker.commit([Message(f"fleet/v1/{machine.dispenser_id}/status", encode(said))])
    with database.begin() as connection:
        outgoing.order(connection, "HD-002", "unlock", lives_s=120, now=NOW)
    return worker


def sent(worker: Worker) -> dict[str, Outbound]:
    return {message.topic: message for message in worker.outbound()}


def desired(database: Database) -> dict[str, Any]:
    with database.begin() as connection:
        return latest_payloads(connection, ["HD-001"], Channel.DESIRED)["HD-001"]


@pytest.mark.parametrize(
    "payload", [{"slots": [{"slot": 0, "queue": []}]}, {"slots": [{"slot": n, "queue": []} for n in range(1, 102)]}]
)
def test_a_message_that_cannot_be_written_holds_up_nobody(
    database: Database, worker: Worker, payload: dict[str, Any]
) -> None:
    with database.begin() as connection:
        books = {"stream_id": "0" * 32, "as_of_seq": 1} | payload
        outgoing.tell(connection, Channel.BOOKS, {"HD-001": books}, NOW)
    assert list(sent(worker)) == [UNLOCK]
    with database.begin() as connection:
        assert outgoing.pending(connection, "HD-001") == []


def test_a_coil_of_many_loads_is_told_with_as_many_lots_as_a_machine_reads(database: Database, worker: Worker) -> None:
    loads = [("L1", 6), ("L1", 6), *[("L2" if n % 2 else "L1", 1) for n in range(1, 30)]]
    enter(
        database,
        *[operation("refill", "111111", step, lot=lot, packs=packs) for step, (lot, packs) in enumerate(loads)],
    )
    messages = sent(worker)
    assert UNLOCK in messages
    told = decode_books(messages["fleet/v1/HD-001/books"].payload)
    (queue,) = [claim.queue for claim in told.slots if claim.slot == 1]
    assert [(lot.lot, lot.packs) for lot in queue] == [
        ("L1", 12),
        *[("L2" if n % 2 else "L1", 1) for n in range(1, 20)],
    ]


def test_a_machine_of_more_lots_than_a_message_names_is_told_of_those_it_may_give(
    database: Database, worker: Worker
) -> None:
    """L1 lies in a slot, of the others those that expire last are the next to be loaded; an unknown lot is not given."""
    enter(database, operation("refill", "111111", 0, lot="L1", packs=5))
    with database.begin() as connection:
        for n in range(299):
            lots.record_lot(connection, "CONDOM-M", f"LATER-{n}", date(2031, 1, 1), NOW)
        for n in range(20):
            lots.record_lot(connection, "CONDOM-M", f"RECALLED-{n}", date(2031, 1, 1), NOW)
            lots.block_lot(connection, "CONDOM-M", f"RECALLED-{n}", "recall")
        tell_desired(connection, None, NOW)
    messages = sent(worker)
    assert UNLOCK in messages
    told = decode_desired(messages["fleet/v1/HD-001/desired"].payload).lots
    assert sorted(lot.lot for lot in told) == sorted(["L1", *[f"LATER-{n}" for n in range(299)]])


def test_of_two_lots_recalled_at_the_same_moment_machines_are_told_both(database: Database) -> None:
    def recall(lot: str) -> None:
        with database.begin() as connection:
            lots.block_lot(connection, "CONDOM-M", lot, "recall")
            tell_desired(connection, None, NOW)

    with database.begin() as connection, ThreadPoolExecutor(1) as pool:
        lots.block_lot(connection, "CONDOM-M", "L1", "recall")
        tell_desired(connection, None, NOW)
        other = pool.submit(recall, "L2")
        with pytest.raises(TimeoutError):
            other.result(timeout=0.3)
        connection.commit()
        other.result(timeout=60)
    assert {lot["lot"] for lot in desired(database)["lots"] if lot["blocked"]} == {"L1", "L2"}
