"""What a fact costs with many dispensers and much history: CPU of the worker and of the database, in one process without a broker.

Two shapes of a transaction, because two things grow with a fleet. In *one each*, every fact of a transaction is another machine's, as in a
fleet that is not behind: what differs between fleets is then only how much there is to look things up in. In a *flood*, 2,000 facts
of machines taken at random: the fewer machines, the more facts share what a transaction does once a machine.
"""

import argparse
import gc
import random
import time
from collections.abc import Iterator, Sequence
from typing import Final

from sqlalchemy import text

from fleet_server.clock import SystemClock
from fleet_server.database import Database
from fleet_server.devices import fleet
from fleet_server.embedded import EmbeddedPostgres
from fleet_server.ingest.service import OBJECTS_BEFORE_COLLECTION
from fleet_server.ingest.worker import Message, Worker
from fleet_server.schema import migrate
from protocol.messages import LotPacks, Refill
from tests.benchmarks.served import cpu_seconds
from tests.conftest import scratch_directory
from tests.fleet_server.machine import Machine

FACTS: Final = 20_000
PER_TRANSACTION: Final = 2_000
ONE_EACH: Final = 42
HISTORY_STEP: Final = 1_000_000

# Facts and movements as they would be, of a stream before the present one, dealt out over the dispensers.
HISTORY: Final = """
INSERT INTO facts SELECT 'D-' || n % :dispensers, 0, n, decode(repeat('7b', 180), 'hex'), 'vend', t, t, t, NULL
FROM (SELECT n, timestamptz '2024-01-01' + n * interval '1 second' AS t FROM generate_series(:first, :last) n) s;
"""
MOVED: Final = """
INSERT INTO movements (place, id, source, target, product, lot, units, reason, actor, cause, at, booked_at)
SELECT 'D-' || n % :dispensers, 'fact:D-' || n % :dispensers || '/0/' || n || '#0', 'slot/D-' || n % :dispensers || '/1',
       'dispensed/D-' || n % :dispensers, 'CONDOM-M', 'L1', 1, 'vend_dispensed', 'dispenser:D-' || n % :dispensers,
       'fact:D-' || n % :dispensers || '/0/' || n, t, t
FROM (SELECT n, timestamptz '2024-01-01' + n * interval '1 second' AS t FROM generate_series(:first, :last) n) s;
"""


def run(options: argparse.Namespace) -> Iterator[str]:
    """Measure each number of dispensers, empty and with each length of history."""
    for dispensers in options.dispensers:
        with scratch_directory() as directory:
            server = EmbeddedPostgres(directory / "postgres")
            url = server.start().url  # the owner, who may vacuum
            migrate(url)
            database = Database(url)
            machines = registered(database, dispensers)
            kept = 0
            load(database, machines)
            for history in sorted(options.history):
                kept = remember(database, dispensers, kept, history)
                # A page that changes for the first time after a checkpoint is written to the log as a whole; a fleet that has run for
                # minutes at the measured rates has that behind it.
                measure(database, server, one_each(machines, random.Random(0), len(machines)))
                for shape, turns in {"one each": one_each, "flood": flood}.items():
                    cost = measure(database, server, turns(machines, random.Random(dispensers)))
                    yield f"{dispensers:>6} dispensers, {history:>11,} facts before, {shape}: {cost}"
            database.close()
            server.remove()


def registered(database: Database, dispensers: int) -> list[Machine]:
    machines = [Machine(f"D-{number}") for number in range(dispensers)]
    with database.begin() as connection:
        fleet.add_dispensers(connection, [
            fleet.Dispenser(machine.dispenser_id, "点位", "Site", "街道", "Street", "370211001", "community", "indoor",
                            36.0, 120.1, 0, 24, "HUANGDAO", None, None, "")
            for machine in machines
        ])  # fmt: skip
    return machines


def load(database: Database, machines: Sequence[Machine]) -> None:
    """Fill two slots of every machine: a fleet that runs has stock, a cursor and books."""
    worker = Worker(database, SystemClock())
    messages = []
    for machine in machines:
        lot = LotPacks(lot="L1", packs=10_000)
        for slot in (1, 2):
            machine.tell(Refill(**machine.when(), slot=slot, product="CONDOM-M", added=[lot]))
        messages.append(Message(f"fleet/v1/{machine.dispenser_id}/facts", machine.batch()))
    for first in range(0, len(messages), PER_TRANSACTION):
        worker.commit(messages[first : first + PER_TRANSACTION])


def remember(database: Database, dispensers: int, kept: int, history: int) -> int:
    """Let there be so many facts and movements of former times."""
    while kept < history:
        last = min(history, kept + HISTORY_STEP)
        with database.begin() as connection:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            for statement in (HISTORY, MOVED):
                connection.execute(text(statement), {"dispensers": dispensers, "first": kept + 1, "last": last})
        kept = last
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM ANALYZE"))
        connection.execute(text("CHECKPOINT"))
    return kept


def one_each(machines: Sequence[Machine], throw: random.Random, facts: int = FACTS) -> list[list[Machine]]:
    """Return whose facts each transaction takes: ONE_EACH different machines, all of the fleet before one has a second turn."""
    turns: list[Machine] = []
    while len(turns) < facts:
        turns += throw.sample(machines, len(machines))
    return [turns[first : first + ONE_EACH] for first in range(0, facts, ONE_EACH)]


def flood(machines: Sequence[Machine], throw: random.Random) -> list[list[Machine]]:
    """Return whose facts each transaction takes: PER_TRANSACTION, of machines at random."""
    return [throw.choices(machines, k=PER_TRANSACTION) for _ in range(0, FACTS, PER_TRANSACTION)]


def measure(database: Database, server: EmbeddedPostgres, turns: Sequence[Sequence[Machine]]) -> str:
    worker = Worker(database, SystemClock())
    gc.freeze()
    gc.set_threshold(OBJECTS_BEFORE_COLLECTION)  # as the service does
    transactions = [[told(machine, 1 + place % 2) for machine in turn] for place, turn in enumerate(turns)]
    facts = sum(map(len, transactions))
    before, before_database, began = time.process_time(), cpu_seconds([server.pid or 0]), time.perf_counter()
    for messages in transactions:
        worker.commit(messages)
    spent, spent_database = time.process_time() - before, cpu_seconds([server.pid or 0]) - before_database
    seconds = time.perf_counter() - began
    return (
        f"CPU per fact in µs: worker {1e6 * spent / facts:.0f}, database {1e6 * spent_database / facts:.0f}"
        f" (wall {1e6 * seconds / facts:.0f})"
    )


def told(machine: Machine, slot: int) -> Message:
    """Return the message of one more vend."""
    machine.vend(slot)
    return Message(f"fleet/v1/{machine.dispenser_id}/facts", machine.batch(len(machine.lines)))
