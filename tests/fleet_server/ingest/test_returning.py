"""What machines had on their way while nobody listened is asked for by who listens again; it does not wait for their own time."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from fleet_server.clock import FixedClock
from fleet_server.database import Database
from fleet_server.devices import fleet, store
from fleet_server.devices.machines import Announcement
from fleet_server.embedded import BrokerAddress
from fleet_server.ingest.worker import STREAMS_AT_ONCE_MAX, Message, Worker
from protocol.codec import decode_ack
from protocol.topics import parse
from simulator.boards.file_board import FileBoard, do
from tests.benchmarks.bare_mqtt import BareClient
from tests.fleet_server.fixtures import NOW
from tests.fleet_server.ingest.serving import PATIENCE_S, serving, until
from tests.fleet_server.machine import Machine

AGENT = """
dispenser_id = "HD-001"
outbox = "{here}/outbox.sqlite"
# It would wait for ever.
ack_timeout_s = 3600
silence_s_max = 3600
[broker]
host = "{broker.host}"
port = {broker.port}
username = "fleet"
password_file = "{here}/password"
tls = false
[board]
driver = "simulator.boards.file_board:open_board"
state = "{here}/board.json"
"""


@contextmanager
def agent(here: Path, broker: BrokerAddress) -> Iterator[FileBoard]:
    """The real agent of HD-001, and its board."""
    (here / "password").write_text(broker.users["fleet"])
    (here / "agent.toml").write_text(AGENT.format(here=here, broker=broker))
    process = subprocess.Popen([sys.executable, "-m", "device_agent", "--config", str(here / "agent.toml")])
    try:
        yield FileBoard({"state": str(here / "board.json")})
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def kinds(database: Database) -> list[str]:
    with database.begin() as connection:
        return list(connection.execute(text("SELECT kind FROM facts ORDER BY stream_no, seq")).scalars())


def is_known(database: Database) -> bool:
    with database.begin() as connection:
        return bool(store.all_presence(connection))


@pytest.mark.slow
def test_a_fact_that_was_sent_before_ingest_listened_again_comes_as_soon_as_it_does(
    database: Database, database_url: str, broker: BrokerAddress, tmp_path: Path
) -> None:
    witness = BareClient(broker, "server", "witness")
    witness.subscribe("fleet/v1/HD-001/facts")
    with ExitStack() as stack:
        with serving(database_url, broker):
            board = stack.enter_context(agent(tmp_path, broker))
            until(lambda: "started" in kinds(database) and is_known(database), "the machine is known")
        do(board, "door", "open")
        until(lambda: any(b"door_opened" in batch for batch in witness.receive()), "the broker has given the fact away")
        assert "door_opened" not in kinds(database)
        with serving(database_url, broker):
            until(lambda: "door_opened" in kinds(database), "the fact is sent again")
    witness.close()


def test_every_announced_stream_is_told_once_where_it_stands_a_few_at_a_time(database: Database) -> None:
    worker = Worker(database, FixedClock(NOW))
    machine = Machine().vend().vend()
    worker.commit([Message("fleet/v1/HD-001/facts", machine.batch())])
    fleets = [f"RT-{number:04}" for number in range(STREAMS_AT_ONCE_MAX)]
    with database.begin() as connection:
        one = store.get_dispenser(connection, "HD-001")
        fleet.add_dispensers(connection, [replace(one, id=name) for name in fleets])
        said = [("HD-001", machine.stream_id), *((name, "ab" * 16) for name in fleets)]
        store.announce(connection, [Announcement(*each, session=1, online=True, received_at=NOW) for each in said])
    told = list(worker.where_we_stand())
    assert [len(some) for some in told] == [STREAMS_AT_ONCE_MAX, 1]
    stands = {parse(message.topic).dispenser_id: decode_ack(message.payload) for some in told for message in some}
    assert {name: (ack.kind, ack.through_seq, ack.sent_at_ms) for name, ack in stands.items()} == {
        "HD-001": ("gap", 2, None),
        **dict.fromkeys(fleets, ("gap", 0, None)),
    }
    assert stands["HD-001"].digest == machine.digests[2].hex()
    assert stands["HD-001"].stream_id == machine.stream_id
