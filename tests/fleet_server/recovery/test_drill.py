"""The drill of docs/operating.md: most of a day is lost after the backup, and comes back from machines, phones and desks."""

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from fleet_server.clock import system_now
from fleet_server.database import Database
from fleet_server.recovery.backup import write_backup
from fleet_server.recovery.rebuild import rebuild
from tests.conftest import scratch_directory
from tests.fleet_server.recovery.databases import table
from tests.installation import PASSWORD, Installation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

VISITS_BEFORE = 5
RECEIPT = {
    "operation_id": uuid.uuid4().hex,
    "lines": [{"product": "CONDOM-M", "lot": "DRILL-1", "packs": 480, "expires_on": "2030-06-30"}],
}


@pytest.fixture
def installation() -> Iterator[Installation]:
    with scratch_directory() as directory:
        running = Installation(directory)
        yield running
        running.close()


def command(installation: Installation, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `dispenser-fleet` as an operator does who owns the tables."""
    environment = installation.environment() | {"DISPENSER_FLEET_MIGRATION_URL": installation.owner_url}
    called = [sys.executable, "-m", "fleet_server", *arguments]
    return subprocess.run(called, env=environment, capture_output=True, text=True, timeout=120, check=False)


def restored(installation: Installation, path: str) -> None:
    """Restore, as soon as PostgreSQL has noticed that the killed server is gone."""
    deadline = time.monotonic() + 60
    done = command(installation, "restore", path, "--replace")
    while done.returncode and "stop every server" in done.stderr and time.monotonic() < deadline:
        time.sleep(0.2)
        done = command(installation, "restore", path, "--replace")
    assert done.returncode == 0, done


def at_the_desk(installation: Installation, path: str, body: dict[str, Any]) -> Any:
    installation.await_ready()
    with httpx2.Client(base_url=f"{installation.url}/api/v1", timeout=60) as client:
        token = client.post("/sign-in", json={"user": "dispatcher", "password": PASSWORD}).json()["token"]
        answer = client.post(path, json=body, headers={"authorization": f"Bearer {token}"})
        assert answer.status_code == 200, answer.text
        return answer.json()


def told(database: Database) -> dict[str, set[tuple[Any, ...]]]:
    """What machines, phones and desks have told."""
    return {
        "facts": set(table(database, "SELECT dispenser_id, stream_no, seq, encode(line, 'escape') FROM facts")),
        "operations": set(table(database, "SELECT operation_id, payload::text, state, stream_no, seq FROM operations")),
    }


def books(database: Database) -> dict[tuple[str, int], Any]:
    rows = table(database, "SELECT dispenser_id, slot, book FROM slot_books")
    return {(dispenser_id, slot): book for dispenser_id, slot, book in rows}


def depots_and_vans(database: Database) -> list[tuple[Any, ...]]:
    query = """
        SELECT account, product, lot, units FROM balances
        WHERE units <> 0 AND account !~ '^(slot|dispensed|unverified|in_doubt|count_difference)/' ORDER BY 1, 2, 3"""
    return table(database, query)


def backup_amid_the_tours(installation: Installation, database: Database, simulator: "subprocess.Popen[str]") -> Path:
    """Write a backup while the server works and restockers are on their way."""
    deadline = time.monotonic() + 240
    while len(table(database, "SELECT DISTINCT visit_id FROM operations WHERE visit_id IS NOT NULL")) < VISITS_BEFORE:
        assert simulator.poll() is None, simulator.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return write_backup(database, installation.directory / "drill.fleetbackup", system_now()).path


@pytest.mark.parametrize("seed", [31, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(32, 36))])
def test_o2_a_lost_day_comes_back_and_what_does_not_is_named(installation: Installation, seed: int) -> None:
    database = Database(installation.owner_url)
    simulator = installation.simulate(days=1, seed_=seed)
    path = backup_amid_the_tours(installation, database, simulator)
    at_the_desk(installation, "/depot/receipts", RECEIPT)
    lived = installation.finished(simulator)
    assert lived["restocks"] > VISITS_BEFORE + 10, f"seed {seed}: {lived}"
    before, books_before, depots_before = told(database), books(database), depots_and_vans(database)
    orders = {key for (key,) in table(database, "SELECT key FROM outgoing WHERE channel = 'orders'")}
    database.close()

    installation.kill("server")
    restored(installation, str(path))
    lost = {what: len(rows) - len(told(database)[what]) for what, rows in before.items()}
    assert min(lost.values()) > 100, lost
    kept = {order for (order,) in table(database, "SELECT key FROM outgoing WHERE channel = 'orders'")}
    installation.restart("server")
    receipt = {"kind": "receipt", "entered_at": "2026-09-22T00:00:00Z", **RECEIPT}
    offered = at_the_desk(installation, "/recovery/operations", {"depot": [receipt]})
    assert [result["verdict"] for result in offered["results"]] == ["booked"]

    later = installation.played(days=0.02, seed_=seed)
    assert (later["residual"], later["problems"]) == (0, 0), f"seed {seed}: {later}"
    assert installation.audited().differences == [], f"seed {seed}"
    after = told(database)
    for what, rows in before.items():
        assert rows <= after[what], f"seed {seed}: {what} {sorted(rows - after[what])[:5]}"
    # Slots that nobody has used since have the very books of the undisturbed history, and so have depot and vans.
    used = {(fact[0], json.loads(fact[3]).get("slot")) for fact in after["facts"] - before["facts"]}
    undisturbed = {key: book for key, book in books_before.items() if key not in used}
    assert len(undisturbed) > 0.9 * len(books_before)
    books_after = books(database)
    assert {key: books_after[key] for key in undisturbed} == undisturbed, f"seed {seed}"
    assert depots_and_vans(database) == depots_before, f"seed {seed}"

    done = command(installation, "losses", "--json")
    losses = json.loads(done.stdout)
    # The receipt registered a lot, of which every machine was told.
    assert {loss["kind"] for loss in losses} == {"order", "desired"}, losses
    text = " ".join(loss["words"] for loss in losses)
    assert all(order in text for order in orders - kept)
    assert len(orders - kept) > 10
    with database.begin() as connection:
        assert {difference.table for difference in rebuild(connection, system_now())} <= {"faults"}
    database.close()
