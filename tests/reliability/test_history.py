"""A long history of machines and a server that are killed again and again, in one process: nothing lost, nothing doubled.

The agents, their outboxes, the worker and PostgreSQL are real; what dies loses everything that was not committed. The same
seed plays the same history. SOAK_FACTS and SOAK_KILLS say how long the long form goes on.
"""

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from device_agent import effects as ef
from device_agent import events as ev
from fleet_server.clock import FixedClock
from fleet_server.database import Database
from fleet_server.ingest.worker import Worker
from protocol.messages import Count, Refill
from simulator.boards.virtual_board import Fault
from tests.fleet_server.fixtures import NOW
from tests.reliability.invariants import check
from tests.reliability.links import Stocked, Wire
from tests.reliability.test_crash_points import CountingConnection, Died
from tests.reliability.test_orders_of_arrival import register

pytestmark = [pytest.mark.slow]
ASKED_A_ROUND = 60
LOW_PACKS = 80
VISIT_PACKS = 150
MACHINES = 20


class WorkerDied(BaseException):
    """The server's process was killed."""


class Mortal(Stocked):
    """A machine that dies when it is told to, and starts again from what its card holds."""

    def __init__(self, directory: Path, seed: int, dispenser_id: str) -> None:
        self._home, self._lives = directory, 1
        (directory / "1").mkdir(parents=True)
        super().__init__(directory / "1" / "outbox.sqlite", seed, dispenser_id)

    def survives(self, happens: Callable[[], object], dies_at: int) -> bool:
        """Let something happen, and the power be cut at the n-th durable step of it; returns whether it was over before."""
        outbox = self.bench.outbox
        whole = outbox._db
        outbox._db = CountingConnection(whole, dies_at)  # type: ignore[assignment]
        try:
            happens()
        except Died:
            self._start_again(whole)
            return False
        finally:
            outbox._db = whole
        return True

    def _start_again(self, whole: Any) -> None:
        former, self._lives = self.bench.path.parent, self._lives + 1
        here = self._home / str(self._lives)
        here.mkdir()
        for file in former.iterdir():
            if not file.name.endswith("-shm"):
                shutil.copy(file, here / file.name)
        whole.close()
        shutil.rmtree(former)
        self.bench.path = here / "outbox.sqlite"
        self.bench._boot()
        self.bench.asked.clear()
        effects = self.bench.start(
            life_count=self.board.life_count, last_board_sequence=self.board.last_sequence, door_open=self.door_open
        )
        for effect in effects:
            if isinstance(effect, ef.AskBoard):
                stored = self.board.stored(effect.board_sequence)
                self.bench.tell(ev.BoardAnswered(effect.board_sequence, stored, self.board.life_count))

    def asked(self, visitors: int) -> None:
        for _ in range(visitors):
            self.ask()

    def enter_once(self, enter: Callable[[], object], kind: type, dies_at: int) -> None:
        """Enter something at the machine's keys; where it dies and does not show the entry afterwards, enter it again."""
        before = self.bench.outbox.last_seq
        if not self.survives(enter, dies_at) and kind not in self.kinds_after(before):
            enter()


@dataclass
class History:
    """What has happened so far."""

    seed: int
    facts: int = 0
    kills: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.facts} facts, {self.kills.total()} kills {dict(self.kills)}"


class MortalWire(Wire):
    """The server's worker dies at the n-th round trip to its database, and answers get lost."""

    steps_left = -1

    def dies_at(self, steps: int) -> None:
        type(self).steps_left = steps

    def restart(self) -> None:
        """A new worker process: nothing is left of the former one but what it committed."""
        self.database.close()
        self.dies_at(-1)
        self.database = Database(self.url)
        self.worker = Worker(self.database, FixedClock(NOW))


@pytest.fixture
def counted_round_trips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every round trip of every connection to the database is a step at which the worker may die."""
    wait = psycopg.Connection.wait

    def counting(connection: Any, *arguments: Any, **more: Any) -> Any:
        if MortalWire.steps_left > 0:
            MortalWire.steps_left -= 1
        if MortalWire.steps_left == 0:  # the dead say nothing more, not even that they give up
            raise WorkerDied
        return wait(connection, *arguments, **more)

    monkeypatch.setattr(psycopg.Connection, "wait", counting)


def a_round(machine: Mortal, wire: MortalWire, throw: random.Random, history: History, kill_share: float) -> None:
    """Some hours of one machine without a link, perhaps a visit, then a session; something dies in some of them."""

    def dies_at() -> int:
        return throw.randint(1, 40) if throw.random() < kill_share else 10**9

    def lived(kind: str, survived: bool) -> None:
        history.kills[kind] += not survived

    before = machine.bench.outbox.last_seq
    if len(machine.board.coils.get(1, [])) < LOW_PACKS:
        a_visit(machine, throw, dies_at)
    if throw.random() < 0.05:
        machine.board.plant(1, Fault.JAM)
    for _ in range(ASKED_A_ROUND // 10):
        lived("agent", machine.survives(lambda: machine.asked(10), dies_at()))
    wire.dies_at(throw.randint(1, 40) if throw.random() < 4 * kill_share else -1)
    try:
        lived("agent", machine.survives(wire.connect, dies_at()))
    except WorkerDied:  # the machine hears nothing, and tries again when it is connected anew
        history.kills["worker"] += 1
        wire.restart()
    wire.dies_at(-1)
    wire.disconnect()
    history.facts += machine.bench.outbox.last_seq - before


def a_visit(machine: Mortal, throw: random.Random, dies_at: Callable[[], int]) -> None:
    machine.survives(machine.opens, dies_at())
    lot = throw.choice(["L1", "L2"])
    machine.board.load(1, lot, VISIT_PACKS)
    machine.enter_once(lambda: machine.enter_refill(lot, VISIT_PACKS), Refill, dies_at())
    machine.enter_once(machine.count_here, Count, dies_at())
    machine.survives(machine.closes, dies_at())
    if machine.door_open:
        machine.closes()


def play(
    directory: Path,
    database: Database,
    url: str,
    *,
    seed: int,
    machines: int,
    facts: int,
    kills: int,
    kill_share: float,
) -> History:
    """Play until there were so many facts and kills; then everything is sent, and I1 to I5 are checked."""
    throw, history = random.Random(seed), History(seed)
    pairs = []
    for number in range(machines):
        name = f"LH-{number + 1:03d}"
        register(database, name)
        machine = Mortal(directory / name, seed * 1_000 + number, name)
        pairs.append((machine, MortalWire(machine.bench, Database(url), url)))
    while history.facts < facts or history.kills.total() < kills:
        for machine, wire in pairs:
            a_round(machine, wire, throw, history, kill_share)
    for machine, wire in pairs:
        wire.connect()
        assert machine.bench.outbox.pending == 0, f"{history}: {machine.bench.outbox.pending} facts are not sent"
        wire.database.close()
    check(url, [machine.witness for machine, _ in pairs], str(history))
    for machine, _ in pairs:
        machine.bench.outbox.close()
    return history


@pytest.mark.usefixtures("counted_round_trips")
@pytest.mark.parametrize("seed", [1, 2])
def test_a_history_under_kills_loses_and_doubles_nothing(
    database: Database, database_url: str, fast_disk: Path, seed: int
) -> None:
    history = play(fast_disk, database, database_url, seed=seed, machines=2, facts=700, kills=15, kill_share=0.3)
    assert {"agent", "worker"} <= set(history.kills), history


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.usefixtures("counted_round_trips")
def test_a_million_facts_and_a_thousand_kills_lose_and_double_nothing(
    database: Database, database_url: str, fast_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("RELIABILITY_SEED", "1"))
    facts, kills = int(os.environ.get("SOAK_FACTS", "1000000")), int(os.environ.get("SOAK_KILLS", "1000"))
    began_s = time.monotonic()
    history = play(
        fast_disk, database, database_url, seed=seed, machines=MACHINES, facts=facts, kills=kills, kill_share=0.02
    )
    with capsys.disabled():
        print(f"\n{history} in {time.monotonic() - began_s:.0f} s")  # noqa: T201 - the figure that is wanted
