"""Resident memory of one ingest worker while more comes than it can take: what waits has to wait in the broker."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from sqlalchemy import text

from fleet_server.database import Database
from protocol.codec import encode
from protocol.messages import Vitals
from tests.benchmarks.agent import Figure
from tests.benchmarks.bare_mqtt import BareClient
from tests.benchmarks.served import MACHINES, Bench, Messages, bench, broker_kinds

RSS_MIB_MAX: Final = 300
BATCHED_FACTS: Final = 200_000
SINGLE_FACTS: Final = 40_000
UNREADABLE: Final = 3_000
UNREADABLE_BYTES: Final = 60_000
READINGS: Final = 50_000
STANDS_STILL_S: Final = 5


def run() -> Iterator[object]:
    """Flood a worker in every way on every broker that is here; the highest it came to, each time from where it rested."""
    for kind in broker_kinds():
        with bench(kind) as running:
            yield Figure(f"{kind}: at rest", resident_mib(running.server.pid), "MiB", RSS_MIB_MAX)
            floods: dict[str, Callable[[], object]] = {
                f"{BATCHED_FACTS:,} facts in batches": lambda: running.through(running.cut(BATCHED_FACTS, 100)),
                f"{SINGLE_FACTS:,} facts one by one": lambda: running.through(running.cut(SINGLE_FACTS, 1)),
                f"{UNREADABLE:,} unreadable, the database standing": lambda: standing(running, unreadable()),
                f"{READINGS:,} readings, the database standing": lambda: standing(running, readings(running)),
            }
            for name, flood in floods.items():
                forget_peak(running.server.pid)
                flood()
                yield Figure(f"{kind}: {name}", resident_mib(running.server.pid), "MiB", RSS_MIB_MAX)


def resident_mib(pid: int) -> float:
    """Return the most that a process had resident since its peak was forgotten."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def unreadable() -> Messages:
    return [(f"fleet/v1/NOBODY-{n % MACHINES}/facts", b"\x00" * UNREADABLE_BYTES) for n in range(UNREADABLE)]


def readings(running: Bench) -> Messages:
    return [
        (
            f"fleet/v1/{machine.dispenser_id}/vitals",
            encode(Vitals(stream_id=machine.stream_id, session=1, at_ms=machine.when()["at_ms"] + n, agent_version="1", pending_facts=0)),
        )
        for n in range(READINGS // MACHINES)
        for machine in running.machines
    ]  # fmt: skip


def standing(running: Bench, messages: Messages) -> None:
    """Publish while nothing can be committed, for a while; then wait until what an honest machine sends is answered."""
    owner = Database(running.owner_url)
    client = BareClient(running.address, "fleet", "bench-flood")
    with owner.begin() as connection:
        connection.execute(text("LOCK TABLE dead_letters, vitals IN ACCESS EXCLUSIVE MODE"))
        client.publish_all(messages)
        time.sleep(STANDS_STILL_S)
    client.close()
    owner.close()
    running.through(running.cut(MACHINES, 1))
