"""Ingest against its two limits, measured in the same run: the broker's bare relay, and PostgreSQL storing the same rows."""

import argparse
import cProfile
import pstats
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import psycopg

from fleet_server.clock import SystemClock
from fleet_server.database import Database
from fleet_server.ingest.worker import Message, Worker
from fleet_server.ledger.audit import audit
from tests.benchmarks.bare_mqtt import relay_rate
from tests.benchmarks.served import MACHINES, SLOTS, Bench, BrokerKind, Messages, bench, broker_kinds
from tests.fleet_server.machine import Machine

SINGLE_MESSAGES: Final = 20_000
BATCHED_FACTS: Final = 100_000
PER_BATCH: Final = 100
COPY_ROWS: Final = 5_000
HALF_LOAD_S: Final = 4
PROFILE_LINES: Final = 14


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


def single(running: Bench, kind: BrokerKind) -> Figure:
    """Measure messages of one fact beside the bare relay of the same messages."""
    messages = running.cut(SINGLE_MESSAGES, 1)
    seconds, cpu = running.through(messages)
    running.server.send_signal(signal.SIGSTOP)  # nobody else reads while the bare relay is measured
    relay = relay_rate(running.address, messages)
    running.server.send_signal(signal.SIGCONT)
    # What the worker was sent meanwhile are duplicates; the next measurement must not wait for them.
    running.through(running.cut(MACHINES, 1))
    name = f"single-fact messages, {kind}"
    return Figure(name, SINGLE_MESSAGES / seconds, "bare relay", relay, per_fact(cpu, SINGLE_MESSAGES))


def batched(running: Bench, kind: BrokerKind) -> Figure:
    """Measure batches beside PostgreSQL taking the same rows."""
    seconds, cpu = running.through(running.cut(BATCHED_FACTS, PER_BATCH))
    stored = storing_rate(running.owner_url, running.machines, BATCHED_FACTS)
    name = f"batches of {PER_BATCH}, {kind}"
    return Figure(name, BATCHED_FACTS / seconds, "COPY + dedup + projection", stored, per_fact(cpu, BATCHED_FACTS))


def half_load(running: Bench, rate: float) -> str:
    """Measure how long a message waits for its ack at half of a rate."""
    messages = running.cut(int(rate / 2 * HALF_LOAD_S), 1)
    waited = sorted(running.latencies(messages, rate / 2))
    p50, p99 = (waited[int(len(waited) * part)] * 1000 for part in (0.5, 0.99))
    return f"publish to ack at half that load ({rate / 2:,.0f}/s): median {p50:.0f} ms, p99 {p99:.0f} ms"


def audited(running: Bench) -> str:
    database = Database(running.database_url)
    with database.begin() as connection:
        report = audit(connection)
    database.close()
    assert report.differences == [], report.differences[:3]
    return f"audit after {report.facts:,} stock facts: 0 differences"


def profile(running: Bench, messages: Messages, name: str) -> Iterator[str]:
    """Apply messages in this process under the profiler, which doubles the cost of small functions."""
    database = Database(running.database_url)
    worker = Worker(database, SystemClock())
    arrived = [Message(*message) for message in messages]
    profiler = cProfile.Profile()
    profiler.enable()
    worker.commit(arrived)
    profiler.disable()
    database.close()
    stats = pstats.Stats(profiler)
    total = sum(row[2] for row in stats.stats.values())  # type: ignore[attr-defined]
    yield f"profile of {name}, own time:"
    rows = sorted(stats.stats.items(), key=lambda item: -item[1][2])  # type: ignore[attr-defined]
    for (file, _, function), (_, calls, own, _, _) in rows[:PROFILE_LINES]:
        place = "/".join(file.split("/")[-2:])
        yield f"  {100 * own / total:4.1f} %  {calls:>7} calls  {function} ({place})"


def run(options: argparse.Namespace) -> Iterator[object]:
    """Measure on every broker that is here; each round measures its limit right beside."""
    for kind in broker_kinds():
        with bench(kind) as running:
            for measure in (single, batched):
                rounds = [measure(running, kind) for _ in range(options.rounds)]
                ratios = [figure.rate / figure.limit for figure in rounds]
                middle = median_figures(rounds)
                yield (
                    f"{middle}; rounds "
                    + " ".join(f"{r:.2f}" for r in ratios)
                    + f", spread {statistics.pstdev(ratios):.3f}"
                )
                if measure is single:
                    yield half_load(running, middle.rate)
            yield audited(running)
            if kind == "nats":
                running.server.send_signal(signal.SIGSTOP)
                yield from profile(running, running.cut(5_000, 1), "single-fact messages")
                yield from profile(running, running.cut(20_000, PER_BATCH), "batches")
                running.server.send_signal(signal.SIGCONT)
