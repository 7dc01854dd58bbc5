"""What the server's login may not do, tried on a real PostgreSQL; and that the server really runs with that login."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import fleet_server.app  # noqa: F401 - imports every feature's tables
from fleet_server.clock import system_now
from fleet_server.database import Database, DatabaseError, metadata
from fleet_server.privileges import APPLICATION_ROLE, PRIVILEGES
from fleet_server.recovery.backup import restore_backup, write_backup
from fleet_server.schema import migrate
from tests.conftest import scratch_directory
from tests.fleet_server.fixtures import enter, operation, send
from tests.fleet_server.machine import Machine
from tests.fleet_server.test_command_line import refused, run
from tests.installation import Installation

APPEND_ONLY = ("facts", "forked_facts", "stream_gaps", "movements", "audit_log", "operations")
CONTENT = (
    "operation_id", "dispenser_id", "visit_id", "slot", "kind", "payload", "session", "step", "entered_at",
    "received_at", "actor", "van",
)  # fmt: skip


@pytest.fixture
def application(database: Database, database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """The server's login, on a database where something was reported and something waits for its door session."""
    send(database, Machine().door("111111").vend())
    enter(database, operation("refill", "111111", 0, lot="L1", packs=5), operation("count", "222222", 0, counted=3))
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def may_not(connection: psycopg.Connection[Any], statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement.encode())


def test_what_was_reported_and_booked_cannot_be_rewritten(application: psycopg.Connection[Any]) -> None:
    def content(table: str) -> list[Any]:
        return application.execute(f"SELECT t::text FROM {table} t ORDER BY 1".encode()).fetchall()

    for table in APPEND_ONLY:
        before = content(table)
        description = application.execute(f"SELECT * FROM {table} LIMIT 0".encode()).description or []
        columns = [column.name for column in description]
        for column in CONTENT if table == "operations" else columns:
            may_not(application, f"UPDATE {table} SET {column} = {column}")
        may_not(application, f"DELETE FROM {table}")
        may_not(application, f"TRUNCATE {table}")
        may_not(application, f"DROP TABLE {table}")
        may_not(application, f"ALTER TABLE {table} DISABLE TRIGGER ALL")
        may_not(application, f"ALTER TABLE {table} ADD COLUMN more int")
        may_not(application, f"CREATE TRIGGER t BEFORE INSERT ON {table} EXECUTE FUNCTION refuse_change()")
        may_not(application, f"CREATE RULE r AS ON INSERT TO {table} DO INSTEAD NOTHING")
        same = f"t.{columns[0]} = s.{columns[0]}"
        may_not(application, f"MERGE INTO {table} t USING {table} s ON {same} WHEN MATCHED THEN DELETE")
        assert content(table) == before


def test_a_partition_cannot_be_reached_by_its_own_name(application: psycopg.Connection[Any]) -> None:
    for table in ("facts", "movements"):
        tree = f"SELECT relid::regclass::text FROM pg_partition_tree('{table}') WHERE isleaf"
        names = [name for (name,) in application.execute(tree.encode()).fetchall()]
        assert len(names) == 16
        for name in names:
            may_not(application, f"SELECT * FROM {name}")
            may_not(application, f"DELETE FROM {name}")
            may_not(application, f"TRUNCATE {name}")
            may_not(application, f"ALTER TABLE {table} DETACH PARTITION {name}")
            may_not(application, f"DROP TABLE {name}")


def test_neither_the_schema_nor_the_role_can_be_changed_from_within(application: psycopg.Connection[Any]) -> None:
    for statement in (
        "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "DROP FUNCTION refuse_change() CASCADE",
        "CREATE TABLE mine (id int)",
        "SET session_replication_role = replica",
        "UPDATE alembic_version SET version_num = '0001'",
        "CREATE ROLE other SUPERUSER",
        "COPY facts TO PROGRAM 'true'",
    ):
        may_not(application, statement)
    user, owner = application.execute(
        "SELECT current_user, tableowner FROM pg_tables WHERE tablename = 'facts'"
    ).fetchone() or ("", "")
    assert user != owner
    may_not(application, f"SET ROLE {owner}")
    may_not(application, f"ALTER ROLE {user} SUPERUSER")


def test_an_operation_is_bound_once_and_then_stays(application: psycopg.Connection[Any]) -> None:
    bind = "UPDATE operations SET state = 'booked', stream_no = 1, seq = 9 WHERE session = '{}'"
    assert application.execute(bind.format("222222").encode()).rowcount == 1
    for session in ("111111", "222222"):
        with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
            application.execute(bind.format(session).encode())


def test_every_table_is_in_the_list_of_privileges() -> None:
    assert set(metadata.tables) | {"alembic_version"} == set(PRIVILEGES)


def test_the_role_has_exactly_what_the_list_says(owner_url: str) -> None:
    with psycopg.connect(owner_url) as connection:
        connection.execute(f"GRANT ALL ON facts, operations TO {APPLICATION_ROLE}".encode())
        connection.execute(f"GRANT UPDATE (payload) ON operations TO {APPLICATION_ROLE}".encode())
    migrate(owner_url)
    query = """
        SELECT table_name, string_agg(privilege_type, ', ' ORDER BY privilege_type) FROM information_schema.table_privileges
        WHERE grantee = %s GROUP BY 1"""
    with psycopg.connect(owner_url) as connection:
        given: dict[str, str] = dict(connection.execute(query, (APPLICATION_ROLE,)).fetchall())
        columns = connection.execute(
            """SELECT string_agg(column_name, ', ' ORDER BY column_name) FROM information_schema.column_privileges
            WHERE grantee = %s AND table_name = 'operations' AND privilege_type = 'UPDATE'""",
            (APPLICATION_ROLE,),
        ).fetchone()
    wanted = {
        table: ", ".join(sorted(re.sub(r", UPDATE \(.*\)", "", privileges).split(", ")))
        for table, privileges in PRIVILEGES.items()
    }
    assert given == wanted
    assert columns == ("seq, state, stream_no",)


def test_after_a_restore_by_the_owner_the_application_has_its_rights_again(
    database: Database, owner_url: str, tmp_path: Path
) -> None:
    send(database, Machine().vend())
    backup = write_backup(database, tmp_path, system_now()).path
    database.close()
    owner = Database(owner_url, patient=True)
    restore_backup(owner, backup, system_now(), replace=True)
    owner.close()
    send(database, Machine().vend())
    with database.engine.connect() as connection, pytest.raises(DatabaseError, match="permission denied"):
        connection.exec_driver_sql("DELETE FROM facts")


# ---------------------------------------------------------------- the command line


def test_the_applications_login_is_told_that_it_cannot_migrate(
    empty_database_url: str, application_user: tuple[str, str]
) -> None:
    name, password = application_user
    address = empty_database_url.rpartition("@")[2]
    for command in ("migrate", "serve"):
        said = refused(run(command, url=f"postgresql://{name}:{password}@{address}"))
        assert "expected the owner of the tables" in said
        assert password not in said


def test_an_owner_who_may_not_create_roles_is_told_what_to_ask_for(postgres_url: str) -> None:
    """On a server of its own, where nobody has made the role yet."""
    from fleet_server.embedded import EmbeddedPostgres
    from tests.conftest import _local_postgres

    with scratch_directory() as directory:
        server = EmbeddedPostgres(directory / "postgres", durable=False, binaries=_local_postgres())
        url = server.start().url
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("REVOKE dispenser_fleet_app FROM dispenser_fleet_server")
            connection.execute("DROP ROLE dispenser_fleet_app")
            connection.execute("CREATE ROLE plain LOGIN PASSWORD 'plain'")
            connection.execute("CREATE DATABASE theirs OWNER plain")
        theirs = re.sub(r"//.*@(.*)/.*", r"//plain:plain@\1/theirs", url)
        one = run("migrate", url=theirs)
        assert one.returncode == 0
        assert "CREATE ROLE dispenser_fleet_app NOLOGIN" in one.stderr
        two = refused(run("migrate", url=theirs, DISPENSER_FLEET_MIGRATION_URL=theirs))
        assert "CREATE ROLE dispenser_fleet_app NOLOGIN" in two
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE ROLE dispenser_fleet_app NOLOGIN")
        assert run("migrate", url=theirs, DISPENSER_FLEET_MIGRATION_URL=theirs).stderr == ""
        server.remove()


def test_the_server_and_its_jobs_and_ingest_run_with_the_applications_login() -> None:
    with scratch_directory() as directory:
        installation = Installation(directory)
        try:
            installation.await_ready()
            with psycopg.connect(installation.owner_url) as connection:
                users = connection.execute(
                    "SELECT DISTINCT usename FROM pg_stat_activity WHERE backend_type = 'client backend'"
                    " AND datname = current_database() AND pid <> pg_backend_pid()"
                ).fetchall()
            assert users == [("dispenser_fleet_server",)]
            database = Database(installation.database_url)
            assert database.is_restricted()
            database.close()
        finally:
            installation.close()
