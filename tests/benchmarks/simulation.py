"""The simulator's speed: a year of 42 dispensers in process and over a real broker, and a day of 10,000 in one process.

A limit measured in the same run stands beside the first two: the same agents, visitors and faults without any server, whose answers
are made up at once. What a year costs beyond that is ingest, ledger, API and the way there.
"""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

from fleet_server.embedded import EmbeddedPostgres
from fleet_server.schema import migrate
from tests.conftest import scratch_directory
from tests.installation import Installation
from tests.played import audited, played

DAYS: Final = float(os.environ.get("SIMULATED_DAYS", "365"))
MANY: Final = int(os.environ.get("SIMULATED_DISPENSERS", "10000"))
SEED: Final = 1


def run() -> Iterator[str]:
    """Measure all three; SIMULATED_DAYS and SIMULATED_DISPENSERS make a smaller run of it, which says so."""
    yield _in_a_process("year")
    yield _over_a_broker()
    yield _in_a_process("many")


def _in_a_process(what: str) -> str:
    """Each in a process of its own: peak memory is that of the process."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.simulation", what], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or f"{what}: failed\n{done.stderr[-2000:]}"


def _line(name: str, days: float, wall_s: float, cpu_s: float, figures: dict[str, Any]) -> str:
    rate = figures["events"] / wall_s
    rest = ", ".join(
        f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}" for key, value in figures.items()
    )
    return f"{name}, {days:g} days: {wall_s:.1f} s, {cpu_s:.1f} s of one processor in the simulator, {rate:,.0f} events/s; {rest}"


def year() -> str:
    """In process: agents, ingest, API and PostgreSQL, without a broker."""
    with scratch_directory() as directory:
        postgres = EmbeddedPostgres(directory / "postgres", durable=False)
        url = postgres.start().url
        migrate(url)
        with played(url, SEED) as running:
            figures = _played(running, DAYS, url)
        postgres.remove()
    return _line("42 dispensers in process", DAYS, *figures)


def many() -> str:
    """One day of many machines, filled before it, in one process."""
    with scratch_directory() as directory:
        postgres = EmbeddedPostgres(directory / "postgres", durable=False)
        url = postgres.start().url
        migrate(url)
        with played(url, SEED, machines=MANY, filled=True) as running:
            figures = _played(running, 1, url)
        postgres.remove()
    return _line(f"{MANY} dispensers in process", 1, *figures)


def _played(running: Any, days: float, url: str) -> tuple[float, float, dict[str, Any]]:
    began_s, cpu_s = time.perf_counter(), time.process_time()
    findings = running.play(days)
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    machines = running.fleet.machines.values()
    return (
        wall_s,
        cpu_s,
        {
            "events": sum(machine.truth.tally.events for machine in machines),
            "facts": sum(machine.facts() for machine in machines),
            "dispenses": sum(machine.truth.tally.outcomes["vend:delivered"] for machine in machines),
            "visits": running.fleet.work.visits,
            "residuals": len(findings.residuals),
            "audit differences": len(audited(url).differences),
            "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        },
    )


def _over_a_broker() -> str:
    """The server a process of its own, the embedded broker between; as in the demo's history, nothing waits for the disk."""
    with scratch_directory() as directory:
        installation = Installation(directory, lasting=False)
        try:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            began_s = time.perf_counter()
            summary = installation.played(days=DAYS, seed_=SEED, timeout_s=3_600)
            wall_s = time.perf_counter() - began_s
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu_s = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
            names = ("events", "facts", "dispenses", "restocks", "residual")
            figures = {name: summary[name] for name in names} | {
                "audit differences": len(installation.audited().differences)
            }
        finally:
            installation.close()
    return _line("42 dispensers over a broker", DAYS, wall_s, cpu_s, figures)


if __name__ == "__main__":
    sys.stdout.write({"year": year, "many": many}[sys.argv[1]]() + "\n")
