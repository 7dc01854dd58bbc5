"""P3: ingest is killed between each pair of its steps: each round trip to the database, each answer, each PUBACK."""

import itertools
import os
import random
import signal
import socket
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from device_agent import events as ev
from fleet_server.clock import FixedClock
from fleet_server.database import Database
from fleet_server.embedded import BrokerAddress as Embedded
from fleet_server.ingest.broker import BrokerAddress
from fleet_server.ingest.service import IngestService
from simulator.boards.virtual_board import Fault
from tests.fleet_server.fixtures import NOW
from tests.reliability.forks import Child, until
from tests.reliability.invariants import check
from tests.reliability.links import Link, Stocked

pytestmark = [pytest.mark.slow]


def ingest_that_dies(url: str, address: Embedded, dies_at: int | None, log: Path) -> Child:
    """A process of one ingest worker; told by SIGUSR1, it counts its steps, and kills itself at the n-th."""

    def run() -> None:
        steps = itertools.count(1)
        counts = False

        def begin(*_: object) -> None:
            nonlocal counts
            counts = True

        def dies_now() -> bool:
            return counts and next(steps) == dies_at

        wait, send = psycopg.Connection.wait, socket.socket.send

        def waiting(connection: Any, *arguments: Any, **more: Any) -> Any:
            if dies_now():
                os.kill(os.getpid(), signal.SIGKILL)
            return wait(connection, *arguments, **more)

        def sending(opened: socket.socket, data: Any, *more: Any) -> int:
            if dies_now():
                send(opened, memoryview(data)[: len(data) // 2])  # in the middle of the packet
                os.kill(os.getpid(), signal.SIGKILL)
            return send(opened, data, *more)

        psycopg.Connection.wait = waiting  # type: ignore[method-assign,assignment] # every round trip, commits and copies too
        socket.socket.send = sending  # type: ignore[method-assign,assignment] # answers to machines, and what the broker is told
        signal.signal(signal.SIGUSR1, begin)
        broker = BrokerAddress(
            address.host, address.port, tls=False, username="server", password=address.users["server"]
        )
        service = IngestService(Database(url), FixedClock(NOW), broker)
        service.start()
        until(lambda: service.connected, "ingest is connected")
        print("connected", flush=True)  # noqa: T201 - the test reads it
        while True:
            time.sleep(1)

    log.unlink(missing_ok=True)
    child = Child(run, log).go()
    until(lambda: (log.exists() and "connected" in log.read_text()) or child.ended() is not None, "ingest has started")
    assert child.ended() is None, log.read_text()
    return child


def something_happens(machine: Stocked, throw: random.Random) -> None:
    """A visit with a refill and a count, two vends, now and then a jam: one batch of every kind of booking."""
    machine.opens()
    machine.refill_here(throw.choice(["L1", "L2"]), throw.randint(1, 4))
    machine.count_here()
    machine.closes()
    if throw.random() < 0.3:
        machine.board.plant(1, Fault.JAM)
    for _ in range(2):
        machine.ask()


def killed_at_each_step(url: str, broker: Embedded, directory: Path, seed: int) -> int:
    """Kill ingest at step n of a batch, for each n until a batch is through first; returns how many steps a batch has."""
    throw = random.Random(seed)
    machine = Stocked(directory / "outbox.sqlite", seed)
    for n in itertools.count(1):
        child = ingest_that_dies(url, broker, n, directory / "ingest.log")
        link = Link(machine.bench, broker)
        os.kill(child.pid, signal.SIGUSR1)
        something_happens(machine, throw)
        link.carry(machine.bench.tell(ev.ServiceKeyTurned(on=False)))
        link.send_again()
        until(lambda: link.acknowledged(0.1) or child.ended() is not None, f"step {n}: acknowledged, or dead")  # noqa: B023 - called at once
        time.sleep(0.05)
        survived = child.ended() is None
        child.kill()
        link.close()
        if survived or n > 200:
            break
    note = f"seed {seed}: killed at each of {n - 1} steps"
    child = ingest_that_dies(url, broker, None, directory / "ingest.log")
    link = Link(machine.bench, broker)
    while not link.acknowledged(2):
        link.send_again()
    child.kill()
    link.close()
    check(url, [machine.witness], note)
    machine.bench.outbox.close()
    assert survived, note
    return n - 1


def test_p3_ingest_killed_between_each_pair_of_its_steps_books_each_fact_once(
    database: Database, database_url: str, broker: Embedded, fast_disk: Path
) -> None:
    steps = killed_at_each_step(database_url, broker, fast_disk, seed=3)
    assert steps >= 6, "reading, writing, committing, answering and acknowledging are steps of their own"


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [11, 12, 13, 14, 15])
def test_p3_ingest_killed_between_each_pair_of_its_steps_over_many_histories(
    database: Database, database_url: str, broker: Embedded, fast_disk: Path, seed: int
) -> None:
    assert killed_at_each_step(database_url, broker, fast_disk, seed) >= 6
