"""P3: ingest is killed between each pair of its steps: each round trip to the database, each answer, each PUBACK."""

import itertools
import os
import random
import signal
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import paho.mqtt.client
import psycopg
import pytest

from device_agent import effects as ef
from device_agent import events as ev
from fleet_server.clock import FixedClock
from fleet_server.database import Database
from fleet_server.embedded import BrokerAddress as Embedded
from fleet_server.ingest.broker import BrokerAddress
from fleet_server.ingest.service import IngestService
from protocol.messages import LotInfo, LotPacks
from simulator.boards.physical_board import PhysicalBoard
from simulator.boards.virtual_board import Fault
from tests.device_agent.machines import Bench
from tests.fleet_server.fixtures import NOW
from tests.reliability.forks import Child, until
from tests.reliability.invariants import Witness, check
from tests.reliability.links import Link

pytestmark = [pytest.mark.slow]


def ingest_that_dies(url: str, address: Embedded, dies_at: int | None, log: Path) -> Child:
    """A process of one ingest worker; told by SIGUSR1, it counts its steps, and kills itself at the n-th."""

    def run() -> None:
        steps = itertools.count(1)
        counts = False

        def begin(*_: object) -> None:
            nonlocal counts
            counts = True

        def step() -> None:
            if counts and next(steps) == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)

        def counted(owner: type, name: str) -> None:
            call: Callable[..., Any] = getattr(owner, name)

            def wrapped(*arguments: Any, **more: Any) -> Any:
                step()
                return call(*arguments, **more)

            setattr(owner, name, wrapped)

        signal.signal(signal.SIGUSR1, begin)
        counted(psycopg.Connection, "wait")  # every round trip, commits and copies too
        counted(paho.mqtt.client.Client, "publish")
        counted(paho.mqtt.client.Client, "ack")
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


class Stocked:
    """A machine whose packs are all entered at its own keys, so that its coils and the ledger can be compared."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.bench = Bench(directory / "outbox.sqlite")
        lots = [LotInfo(lot=lot, product="CONDOM-M", expires_on=date(2029, 1, 1)) for lot in ("L1", "L2")]
        self.bench.loaded(lots=lots)
        self.board = PhysicalBoard(random.Random(seed))
        self.witness = Witness("HD-001", self.bench.path, lambda: self.board.coils)
        self.bench.asked.clear()

    def something_happens(self, throw: random.Random) -> None:
        """A visit with a refill and a count, two vends, now and then a jam: one batch of every kind of booking."""
        bench, board = self.bench, self.board
        bench.tell(ev.ServiceKeyTurned(on=True), ev.DoorChanged(open=True))
        lot, packs = throw.choice(["L1", "L2"]), throw.randint(1, 4)
        board.load(1, lot, packs)
        bench.tell(ev.LocalRefill(1, "CONDOM-M", added=(LotPacks(lot=lot, packs=packs),)))
        bench.tell(ev.LocalCount(1, len(board.coils[1])))
        bench.passes(30).tell(ev.DoorChanged(open=False), ev.ServiceKeyTurned(on=False))
        board.jammed.clear()
        if throw.random() < 0.3:
            board.plant(1, Fault.JAM)
        for _ in range(2):
            self.does(bench.passes(60).tell(ev.SlotChosen(1)))

    def does(self, effects: list[ef.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, ef.RunMotor):
                turn = self.board.turn(effect.slot, effect.board_sequence)
                ended = ev.VendEnded(effect.board_sequence, turn.result, turn.duration_ms, self.board.life_count)
                self.bench.tell(ended)


def killed_at_each_step(url: str, broker: Embedded, directory: Path, seed: int) -> int:
    """Kill ingest at step n of a batch, for each n until a batch is through first; returns how many steps a batch has."""
    throw = random.Random(seed)
    machine = Stocked(directory, seed)
    for n in itertools.count(1):
        child = ingest_that_dies(url, broker, n, directory / "ingest.log")
        link = Link(machine.bench, broker)
        os.kill(child.pid, signal.SIGUSR1)
        machine.something_happens(throw)
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
