"""The command `dispenser-fleet`: one line and exit code 2 for what cannot be, never a traceback."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from fleet_server.database import Database
from fleet_server.devices.fleet import list_dispensers
from tests.fleet_server.fixtures import enter, operation, send
from tests.fleet_server.machine import Machine
from tests.fleet_server.recovery.databases import backed_up, empty_database

NOWHERE = "postgresql://nobody:not-a-secret@127.0.0.1:9/none"


def run(*arguments: str, url: str | None = None, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DISPENSER_FLEET_")}
    environment = clean | more | ({"DISPENSER_FLEET_DATABASE_URL": url} if url else {})
    command = [sys.executable, "-m", "fleet_server", *arguments]
    return subprocess.run(
        command, env=environment, input=stdin, capture_output=True, text=True, timeout=60, check=False
    )


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """Check that it was refused as it should be; returns what was said."""
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("dispenser-fleet: ")
    return done.stderr


COMMANDS = [
    ["serve"],
    ["audit"],
    ["migrate"],
    ["seed"],
    ["rebuild"],
    ["losses"],
    ["user", "add", "lin", "--role", "viewer"],
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_database_that_is_not_there_is_named_without_its_password(command: list[str]) -> None:
    said = refused(run(*command, url=NOWHERE))
    assert "127.0.0.1:9" in said
    assert "not-a-secret" not in said


def test_without_any_configuration_the_missing_field_is_named() -> None:
    assert "DISPENSER_FLEET_DATABASE_URL" in refused(run("audit"))


@pytest.mark.parametrize("url", ["localhost", "http://localhost/fleet", "postgresql://localhost:port/fleet"])
def test_what_is_no_address_of_a_database_is_refused_without_being_shown(url: str) -> None:
    said = refused(run("audit", url=url))
    assert "postgresql://USER:PASSWORD@HOST:PORT/DATABASE" in said
    assert url not in said


@pytest.mark.parametrize("command", [["audit"], ["rebuild"], ["losses"], ["user", "add", "lin", "--role", "viewer"]])
def test_a_database_without_our_schema_is_to_be_migrated(postgres_url: str, command: list[str]) -> None:
    with empty_database(postgres_url) as url:
        assert "dispenser-fleet migrate" in refused(run(*command, url=url, stdin="long-enough-words\n"))


def test_only_the_owner_of_the_tables_restores(database: Database, database_url: str, tmp_path: Path) -> None:
    send(database, Machine().door("111111").vend())
    backup = backed_up(database, tmp_path)
    database.close()
    said = refused(run("restore", str(backup), "--replace", url=database_url))
    assert "migration_url" in said


def test_a_depot_without_machines_is_no_depot(database: Database, database_url: str) -> None:
    database.close()
    said = refused(
        run(
            "user",
            "add",
            "lin",
            "--role",
            "restocker",
            "--depot",
            "NOWHERE",
            url=database_url,
            stdin="long-enough-words\n",
        )
    )
    assert "HUANGDAO" in said


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ("port = 99999\n", "port"),
        ("prot = 80\n", "prot"),
        ('roles = ["web", "cook"]\n', "roles"),
        ("port = \n", "config"),
        ('language = "fr"\n', "language"),
    ],
)
def test_a_wrong_config_file_is_refused_by_field(tmp_path: Path, content: str, field: str) -> None:
    config = tmp_path / "server.toml"
    config.write_text(content)
    assert field in refused(run("serve", "--config", str(config), url=NOWHERE))


def test_a_config_file_that_is_missing_is_named(tmp_path: Path) -> None:
    assert "absent.toml" in refused(run("serve", "--config", str(tmp_path / "absent.toml")))


def test_a_busy_port_is_named(database_url: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused(run("serve", "--port", str(port), url=database_url, DISPENSER_FLEET_ROLES='["web"]'))
    assert f"port = {port}" in said


def test_a_broker_address_without_a_scheme_is_refused(database_url: str) -> None:
    said = refused(run("serve", url=database_url, DISPENSER_FLEET_BROKER_URL="127.0.0.1:1883"))
    assert "broker_url" in said


def test_the_audit_counts_what_it_compared_and_exits_with_0(database: Database, database_url: str) -> None:
    send(database, Machine().door("111111").vend())
    enter(database, operation("refill", "111111", 0, lot="L1", packs=5))
    done = run("audit", "--json", url=database_url)
    assert done.returncode == 0, done
    report = json.loads(done.stdout)
    assert report["differences"] == []
    assert report["movements"] >= 3


@pytest.mark.parametrize(
    "tamper",
    [
        "UPDATE balances SET units = units + 1 WHERE account = 'slot/HD-001/1'",
        "UPDATE slot_books SET book = jsonb_set(book, '{queue,0,2}', '9')",
        "SET session_replication_role = replica; DELETE FROM movements WHERE reason = 'vend_dispensed'",
        "SET session_replication_role = replica; DELETE FROM facts WHERE kind = 'vend'",
    ],
)
def test_the_audit_prints_any_difference_and_exits_with_1(
    database: Database, database_url: str, owner_url: str, tamper: str
) -> None:
    send(database, Machine().door("111111").vend())
    enter(database, operation("refill", "111111", 0, lot="L1", packs=5))
    with psycopg.connect(owner_url) as connection:
        for statement in tamper.split("; "):
            connection.execute(statement.encode())
    done = run("audit", url=database_url)
    assert done.returncode == 1
    assert "HD-001" in done.stdout


def test_a_user_is_added_with_a_password_from_standard_input(database_url: str) -> None:
    assert (
        run("user", "add", "lin", "--role", "restocker", url=database_url, stdin="long-enough-words\n").returncode == 0
    )
    assert "role = 'chef'" in refused(run("user", "add", "lin", "--role", "chef", url=database_url, stdin="x\n"))
    said = refused(run("user", "add", "lin", "--role", "viewer", url=database_url, stdin="short\n"))
    assert "at least 10" in said
    assert "short" not in said


def test_seeding_twice_changes_nothing(database_url: str) -> None:
    def fingerprint() -> list[tuple[str, int]]:
        database = Database(database_url)
        with database.begin() as connection:
            tables = ("dispensers", "slots", "lots", "movements", "outgoing", "products")
            counts = [(t, connection.execute(text(f"SELECT count(*) FROM {t}")).scalar_one()) for t in tables]
        database.close()
        return counts

    assert run("seed", url=database_url).returncode == 0
    once = fingerprint()
    assert dict(once)["dispensers"] == 42
    assert run("seed", url=database_url).returncode == 0
    assert fingerprint() == once


SITE = "X-1,王家桥,Wangjia Bridge,黄岛街道,Huangdao,370211001,community,indoor,36.0,120.2,,9,17,"
SITES = "id,name_zh,name_en,street_zh,street_en,street_code,type,placement,lat,lon,population_estimate,opens_hour,closes_hour,note"


def test_sites_of_ones_own_are_registered_without_stock(database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "sites.csv"
    file.write_text(f"{SITES}\n{SITE}\n")
    done = run("seed", "--sites", str(file), url=database_url)
    assert (done.returncode, done.stdout) == (0, "dispensers registered: 1\n"), done
    database = Database(database_url)
    with database.begin() as connection:
        (site,) = list_dispensers(connection)
        stock = connection.execute(text("SELECT count(*) FROM movements")).scalar_one()
    database.close()
    assert (site.id, site.opens_hour, site.closes_hour, site.population_estimate, stock) == ("X-1", 9, 17, None, 0)


@pytest.mark.parametrize(
    ("was", "is_now", "said"),
    [
        ("X-1", "x/1", "line 2, id"),
        ("community", "castle", "line 2, type"),
        ("36.0", "north", "line 2, lat"),
        (",9,", ",25,", "line 2, opens_hour"),
        (",17,", ",17.5,", "line 2, closes_hour"),
        ("王家桥", "", "line 2, name_zh"),
        (",placement", ",place", "placement"),
        (SITE, "", "a line for each site"),
    ],
)
def test_a_wrong_file_of_sites_is_refused_by_line_and_column(tmp_path: Path, was: str, is_now: str, said: str) -> None:
    file = tmp_path / "sites.csv"
    file.write_text(f"{SITES}\n{SITE}\n".replace(was, is_now))
    assert said in refused(run("seed", "--sites", str(file), url=NOWHERE))


def test_the_asyncapi_document_is_printed() -> None:
    assert json.loads(run("asyncapi").stdout)["asyncapi"].startswith("3.")
