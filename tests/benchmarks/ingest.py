"""Ingest against its two limits, measured in the same run: the broker's bare relay, and PostgreSQL storing the same rows."""

import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

import psycopg

from fleet_server.database import Database, migrate
from fleet_server.devices import fleet
from fleet_server.embedded import BrokerAddress, EmbeddedBroker, EmbeddedPostgres
from fleet_server.ledger import lots
from fleet_server.ledger.audit import audit
from protocol.codec import decode_ack
from protocol.messages import DoorClosed, DoorOpened, LotPacks, Refill, SlotPlan
from tests.benchmarks.bare_mqtt import BareClient, relay_rate
from tests.conftest import free_port, scratch_directory
from tests.fleet_server.machine import Machine

MACHINES: Final = 200
SLOTS: Final = 4
SINGLE_MESSAGES: Final = 20_000
BATCHED_FACTS: Final = 100_000
PER_BATCH: Final = 100
ROUNDS: Final = 3
COPY_ROWS: Final = 5_000
Messages = list[tuple[str, bytes]]


@dataclass
class Figure:
    """One measurement beside its limit; the ratio is what counts, rates depend on the machine."""

    name: str
    rate: float
    limit_name: str
    limit: float
    cpu_us: dict[str, float]

    def __str__(self) -> str:
        cpu = ", ".join(f"{part} {us:.0f}" for part, us in self.cpu_us.items())
        return (
            f"{self.name}: {self.rate:,.0f} facts/s, {self.limit_name} {self.limit:,.0f}/s, ratio {self.rate / self.limit:.2f}"
            f"; CPU per fact in µs: {cpu}"
        )


def cpu_seconds(pids: Sequence[int]) -> float:
    """Processor time that these processes and all their descendants have used."""
    children: dict[int, list[int]] = {}
    used: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            pid = int(entry.name)
            children.setdefault(int(fields[1]), []).append(pid)
            # A child that was waited for stands in its parent's cutime and cstime.
            used[pid] = sum(int(fields[place]) for place in (11, 12, 13, 14)) / os.sysconf("SC_CLK_TCK")
    total, waiting = 0.0, list(pids)
    while waiting:
        pid = waiting.pop()
        total += used.get(pid, 0.0)
        waiting += children.get(pid, [])
    return total


class Bench:
    """Database, broker and one ingest process."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.postgres = EmbeddedPostgres(directory / "postgres")
        postgres = self.postgres.start()
        self.owner_url, self.database_url = postgres.url, postgres.application_url
        self.broker = EmbeddedBroker(directory / "broker")
        self.address: BrokerAddress = self.broker.start()
        migrate(self.owner_url)
        database = Database(self.database_url)
        with database.begin() as connection:
            plant(connection)
        database.close()
        self.machines = [Machine(f"HD-{n:03d}") for n in range(1, MACHINES + 1)]
        self.port = free_port()
        self.server = self._serve()
        self._await_ready()

    def _await_ready(self) -> None:
        """Nobody keeps what is published before the server has subscribed."""
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2).close()
            except OSError:
                assert time.monotonic() < deadline, (self._directory / "server.log").read_text()[-2000:]
                time.sleep(0.1)
            else:
                return

    def _serve(self) -> "subprocess.Popen[bytes]":
        password = self._directory / "broker-password"
        password.write_text(self.address.users["server"])
        settings = {
            "DATABASE_URL": self.database_url, "BROKER_URL": f"mqtt://{self.address.host}:{self.address.port}",
            "BROKER_USERNAME": "server", "BROKER_PASSWORD_FILE": str(password), "ROLES": '["ingest"]',
            "PORT": str(self.port),
        }  # fmt: skip
        environment = os.environ | {f"DISPENSER_FLEET_{name}": value for name, value in settings.items()}
        with (self._directory / "server.log").open("wb") as log:
            return subprocess.Popen([sys.executable, "-m", "fleet_server", "serve"], env=environment, stderr=log)

    def close(self) -> None:
        self.server.terminate()
        self.server.wait(20)
        self.broker.stop()
        self.postgres.remove()

    def cut(self, facts: int, per_batch: int) -> Messages:
        """Let the machines go on, in turns, by `facts` vends in all, cut into batches of `per_batch`."""
        messages: Messages = []
        while len(messages) * per_batch < facts:
            machine = self.machines[len(messages) % MACHINES]
            first = len(machine.lines) + 1
            for number in range(per_batch):
                machine.vend(slot=(first + number) % SLOTS + 1, lot="L1")
            messages.append((f"fleet/v1/{machine.dispenser_id}/facts", machine.batch(first)))
        return messages

    def load(self) -> None:
        """Fill every slot; the books of a stocked fleet are what vends are booked in."""
        messages: Messages = []
        for machine in self.machines:
            machine.tell(DoorOpened(**machine.when(), session="111111", authorised=True))
            for slot in range(1, SLOTS + 1):
                lot = LotPacks(lot="L1", packs=10_000)
                machine.tell(Refill(**machine.when(), slot=slot, product="CONDOM-M", added=[lot], session="111111"))
            machine.tell(DoorClosed(**machine.when(), session="111111", open_ms=1_000))
            messages.append((f"fleet/v1/{machine.dispenser_id}/facts", machine.batch(1)))
        self.through(messages)

    def through(self, messages: Messages) -> tuple[float, dict[str, float]]:
        """Publish, and wait until the server has acknowledged everything; returns seconds, and CPU seconds by part."""
        listener = BareClient(self.address, "fleet", "bench-acks")
        listener.subscribe("fleet/v1/+/ack")
        parts = {"worker": [self.server.pid], "database": [self.postgres.pid or 0], "broker": [self.broker.pid or 0]}
        before = {name: cpu_seconds(pids) for name, pids in parts.items()}
        publisher = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.ingest", self.address.host, str(self.address.port),
             self.address.users["fleet"]],
            stdin=subprocess.PIPE,
        )  # fmt: skip
        assert publisher.stdin
        for topic, payload in messages:
            publisher.stdin.write(b"%d %d\n" % (len(topic), len(payload)) + topic.encode() + payload)
        open_streams = {machine.stream_id: len(machine.lines) for machine in self.machines}
        publisher.stdin.close()
        began = time.perf_counter()
        while open_streams:
            assert listener.ready(60), f"{len(open_streams)} streams are not acknowledged"
            for payload in listener.receive():
                ack = decode_ack(payload)
                assert ack.kind != "nack", ack
                if open_streams.get(ack.stream_id) == ack.through_seq:
                    del open_streams[ack.stream_id]
        seconds = time.perf_counter() - began
        publisher.wait(30)
        listener.close()
        return seconds, {name: cpu_seconds(pids) - before[name] for name, pids in parts.items()}


def plant(connection: Any) -> None:
    """Register what the benchmark's machines need."""
    product = fleet.Product("CONDOM-M", "避孕套", "Condom", "盒", "box", 10, 120, 60)
    fleet.add_products(connection, [product])
    lots.record_lot(connection, "CONDOM-M", "L1", date(2030, 1, 1), datetime.now(UTC))
    for number in range(1, MACHINES + 1):
        dispenser = fleet.Dispenser(
            f"HD-{number:03d}", "点位", "Site", "街道", "Street", "370211001", "community", "indoor", 36.0, 120.1,
            0, 24, "HUANGDAO", None, None, "",
        )  # fmt: skip
        fleet.add_dispensers(connection, [dispenser])
        plans = [SlotPlan(slot=slot, product="CONDOM-M", capacity=20) for slot in range(1, SLOTS + 1)]
        fleet.add_slots(connection, dispenser.id, plans)


LIMIT_TABLES: Final = """
CREATE TABLE limit_facts (dispenser_id text, stream_no int, seq bigint, line bytea, kind text, at timestamptz,
    PRIMARY KEY (dispenser_id, stream_no, seq));
CREATE TABLE limit_stock (dispenser_id text, slot int, units bigint, PRIMARY KEY (dispenser_id, slot));
CREATE TABLE limit_arrived (dispenser_id text, stream_no int, seq bigint, line bytea, kind text, at timestamptz, slot int);
"""


def storing_rate(url: str, machines: Sequence[Machine], facts: int) -> float:
    """Rows a second that PostgreSQL takes by COPY, without repeats, with one projection; nothing else is done with them."""
    at = datetime.now(UTC)
    rows = [
        (machine.dispenser_id, 1, seq, machine.lines[seq - 1], "vend", at, seq % SLOTS + 1)
        for machine in machines
        for seq in range(len(machine.lines) - facts // len(machines) + 1, len(machine.lines) + 1)
    ]
    with psycopg.connect(url) as connection:
        connection.execute("DROP TABLE IF EXISTS limit_facts, limit_stock, limit_arrived")
        for statement in LIMIT_TABLES.strip().split(";\n"):
            connection.execute(statement.encode())
        connection.commit()
        began = time.perf_counter()
        for first in range(0, len(rows), COPY_ROWS):
            with connection.cursor() as cursor, cursor.copy("COPY limit_arrived FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(["text", "int4", "int8", "bytea", "text", "timestamptz", "int4"])
                for row in rows[first : first + COPY_ROWS]:
                    copy.write_row(row)
            connection.execute(
                "WITH new AS (INSERT INTO limit_facts SELECT dispenser_id, stream_no, seq, line, kind, at FROM limit_arrived"
                " ON CONFLICT DO NOTHING RETURNING dispenser_id, seq)"
                " INSERT INTO limit_stock SELECT a.dispenser_id, a.slot, -count(*) FROM limit_arrived a"
                " JOIN new USING (dispenser_id, seq) GROUP BY 1, 2"
                " ON CONFLICT (dispenser_id, slot) DO UPDATE SET units = limit_stock.units + excluded.units"
            )
            connection.execute("TRUNCATE limit_arrived")
            connection.commit()
        return len(rows) / (time.perf_counter() - began)


def median_figures(rounds: Sequence[Figure]) -> Figure:
    """Return the round whose ratio is the median."""
    return sorted(rounds, key=lambda figure: figure.rate / figure.limit)[len(rounds) // 2]


def per_fact(cpu: dict[str, float], facts: int) -> dict[str, float]:
    return {name: 1e6 * seconds / facts for name, seconds in cpu.items()}


@contextmanager
def bench() -> Iterator[Bench]:
    with scratch_directory() as directory:
        running = Bench(directory)
        try:
            running.load()
            yield running
        finally:
            running.close()


def run() -> list[Figure]:
    """Measure single-fact messages and batches; each round measures its limit right beside."""
    single, batched = [], []
    with bench() as running:
        for _ in range(ROUNDS):
            messages = running.cut(SINGLE_MESSAGES, 1)
            seconds, cpu = running.through(messages)
            running.server.send_signal(19)  # SIGSTOP: nobody else subscribes while the bare relay is measured
            relay = relay_rate(running.address, messages)
            running.server.send_signal(18)
            time.sleep(1.5)
            rate = SINGLE_MESSAGES / seconds
            single.append(Figure("single-fact messages", rate, "bare relay", relay, per_fact(cpu, SINGLE_MESSAGES)))
            messages = running.cut(BATCHED_FACTS, PER_BATCH)
            seconds, cpu = running.through(messages)
            stored = storing_rate(running.owner_url, running.machines, BATCHED_FACTS)
            rate = BATCHED_FACTS / seconds
            name = f"batches of {PER_BATCH}"
            batched.append(Figure(name, rate, "COPY + dedup + projection", stored, per_fact(cpu, BATCHED_FACTS)))
        database = Database(running.database_url)
        with database.begin() as connection:
            report = audit(connection)
        database.close()
        assert report.differences == [], report.differences[:3]
    print(f"audit after {report.facts:,} stock facts: 0 differences; ratios of {ROUNDS} rounds:")
    for rounds in (single, batched):
        ratios = [figure.rate / figure.limit for figure in rounds]
        print(
            f"  {rounds[0].name}: " + " ".join(f"{r:.3f}" for r in ratios) + f", spread {statistics.pstdev(ratios):.3f}"
        )
    return [median_figures(single), median_figures(batched)]


def publish() -> None:
    """The publisher's process: what comes on standard input goes out, in order."""
    host, port, password = sys.argv[1:]
    messages: Messages = []
    while head := sys.stdin.buffer.readline():
        topic_size, size = map(int, head.split())
        topic = sys.stdin.buffer.read(topic_size).decode()
        messages.append((topic, sys.stdin.buffer.read(size)))
    client = BareClient(BrokerAddress(host, int(port), {"fleet": password}), "fleet", "bench-machines")
    client.publish_all(messages)
    client.close()


if __name__ == "__main__":
    publish()
