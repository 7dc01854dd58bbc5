"""Backup and restore: everything comes back as it was, and what is no backup of ours is refused in one line."""

import hashlib
import json
import random
import shutil
import zipfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fleet_server.clock import system_now
from fleet_server.database import Database, DatabaseError
from fleet_server.embedded import EmbeddedPostgres
from fleet_server.errors import ConflictError, InputError
from fleet_server.ledger.audit import audit
from fleet_server.recovery.backup import MANIFEST, restore_backup, write_backup
from fleet_server.schema import known_revisions, migrate
from tests.conftest import scratch_directory
from tests.fleet_server.fixtures import enter, operation, send
from tests.fleet_server.recovery.databases import backed_up, empty_database, machine_of_the_day, put_back, table
from tests.fleet_server.test_command_line import refused, run

KEPT = (
    "facts",
    "movements",
    "operations",
    "balances",
    "slot_books",
    "door_sessions",
    "streams",
    "lots",
    "faults",
    "slots",
)


@pytest.fixture
def used(database: Database) -> Database:
    """The database after a visit and some vends."""
    send(database, machine_of_the_day())
    enter(database, operation("count", "111111", 0, counted=0), operation("refill", "111111", 1, lot="L1", packs=9))
    return database


@pytest.fixture
def elsewhere(postgres_url: str) -> Iterator[Database]:
    """A database without a schema."""
    with empty_database(postgres_url) as url:
        database = Database(url, patient=True)
        yield database
        database.close()


def content(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    return {name: sorted(table(database, f"SELECT * FROM {name}"), key=repr) for name in KEPT}


def test_what_is_restored_is_what_was_there(used: Database, elsewhere: Database, tmp_path: Path) -> None:
    written = write_backup(used, tmp_path / "one", system_now())
    restored = restore_backup(elsewhere, written.path, system_now())
    assert (restored.rows, restored.tables) == (written.rows, written.tables)
    assert content(elsewhere) == content(used)
    with elsewhere.begin() as connection:
        assert audit(connection).differences == []


def test_a_restored_database_goes_on(used: Database, elsewhere: Database, tmp_path: Path) -> None:
    """Numbers are not given twice, and what is append-only is so again."""
    restore_backup(elsewhere, backed_up(used, tmp_path), system_now())
    machine = machine_of_the_day().vend().vend()
    send(elsewhere, machine)
    enter(elsewhere, operation("count", "111111", 2, counted=3))
    with elsewhere.begin() as connection:
        assert audit(connection).differences == []
    for name in ("facts", "movements", "forked_facts", "audit_log"):
        with pytest.raises(DatabaseError, match="append-only"), elsewhere.begin() as connection:
            connection.exec_driver_sql(f"TRUNCATE {name}")


def test_the_manifest_names_revision_moment_rows_and_digests(used: Database, tmp_path: Path) -> None:
    path = backed_up(used, tmp_path)
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read(MANIFEST))
        for part in manifest["tables"]:
            assert hashlib.sha256(archive.read(f"{part['table']}.copy")).hexdigest() == part["sha256"]
    assert manifest["schema_revision"] == table(used, "SELECT version_num FROM alembic_version")[0][0]
    rows = {part["table"]: part["rows"] for part in manifest["tables"]}
    assert rows["facts"] == 6
    assert not {"sessions", "presence", "sign_in_attempts", "alembic_version"} & rows.keys()
    assert path.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == [path]


def test_a_backup_is_a_picture_of_one_moment(used: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts that arrive while tables are copied are in none of them."""
    from fleet_server.recovery import backup_store

    copied, began = backup_store.copy_out, list[Any]()
    machine = machine_of_the_day()

    def copy_out(connection: Any, shape: Any) -> Any:
        if not began:
            began.append(shape)
            send(used, machine)
        return copied(connection, shape)

    monkeypatch.setattr(backup_store, "copy_out", copy_out)
    path = backed_up(used, tmp_path)
    put_back(used, path)
    assert began
    assert len(table(used, "SELECT * FROM facts")) == 6
    with used.begin() as connection:
        assert audit(connection).differences == []


def test_a_database_that_holds_something_is_replaced_only_when_told_so(used: Database, tmp_path: Path) -> None:
    path = backed_up(used, tmp_path)
    before = content(used)
    send(used, machine_of_the_day())
    used.close()
    with pytest.raises(ConflictError, match="--replace"):
        restore_backup(used, path, system_now())
    assert len(table(used, "SELECT * FROM facts")) == 12
    put_back(used, path)
    assert content(used) == before


def test_a_restore_waits_for_no_one_and_goes_behind_no_ones_back(used: Database, tmp_path: Path) -> None:
    path = backed_up(used, tmp_path)
    with used.begin():
        other = Database(used.engine.url.render_as_string(hide_password=False))
        with pytest.raises(ConflictError, match="stop every server first"):
            restore_backup(other, path, system_now(), replace=True)
        other.close()


def _rewritten(path: Path, change: Any) -> Path:
    """A backup with its parts passed through `change(name, content)`; None leaves a part out."""
    spoilt = path.with_name("spoilt")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(spoilt, "w") as out:
        for name in archive.namelist():
            changed = change(name, archive.read(name))
            if changed is not None:
                out.writestr(name, changed)
    return spoilt


def _manifest(**values: Any) -> Any:
    return lambda path: _rewritten(
        path, lambda name, old: json.dumps(json.loads(old) | values) if name == MANIFEST else old
    )


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: _rewritten(path, lambda _, old: old.replace(b"\tL1", b"\tL9")), "SHA-256"),
        (lambda path: _rewritten(path, lambda name, old: None if name == "facts.copy" else old), "facts.copy"),
        (lambda path: _rewritten(path, lambda name, old: None if name == MANIFEST else old), "with a manifest.json"),
        (_manifest(format="a photo album"), "a backup of ours"),
        (_manifest(schema_revision="9999"), "schema_revision = '9999'"),
        (lambda path: path.with_name("absent"), "No such file"),
        (lambda _: Path(__file__), "a whole backup"),
        (lambda path: Path(shutil.copytree(Path(__file__).parent, path.parent / "nothing")), "a directory with a backup"),
    ],
)  # fmt: skip
def test_what_is_no_whole_backup_of_ours_changes_nothing_and_says_why(
    used: Database, elsewhere: Database, tmp_path: Path, spoil: Any, words: str
) -> None:
    spoilt = spoil(backed_up(used, tmp_path))
    with pytest.raises(InputError, match=words):
        restore_backup(elsewhere, spoilt, system_now())
    assert table(elsewhere, "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace") == []


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_flipped_bit_is_found_or_changes_nothing(
    used: Database, elsewhere: Database, tmp_path: Path, seed: int
) -> None:
    """Some bits of an archive mean nothing to us, such as the time of a part."""
    throw = random.Random(seed)
    path = backed_up(used, tmp_path)
    spoilt, refusals = tmp_path / "spoilt", 0
    for _ in range(40):
        bytes_ = bytearray(path.read_bytes())
        place = throw.randrange(len(bytes_))
        bytes_[place] ^= 1 << throw.randrange(8)
        spoilt.write_bytes(bytes_)
        try:
            put_back(elsewhere, spoilt)
        except InputError:
            refusals += 1
        else:
            assert content(elsewhere) == content(used), f"seed {seed}, byte {place}"
    assert refusals > 20, f"seed {seed}"


def test_a_clock_before_the_backup_is_not_believed(used: Database, elsewhere: Database, tmp_path: Path) -> None:
    """Its epoch would be lower than one that machines have heard."""
    path = backed_up(used, tmp_path)
    with pytest.raises(InputError, match="clock"):
        restore_backup(elsewhere, path, system_now() - timedelta(days=1))


def test_a_backup_of_an_older_schema_is_brought_up_to_date(
    postgres_url: str, elsewhere: Database, tmp_path: Path
) -> None:
    with empty_database(postgres_url) as url:
        migrate(url, "0003")
        old = Database(url)
        with old.begin() as connection:
            connection.exec_driver_sql(
                "INSERT INTO facts VALUES ('HD-001', 1, 1, 'x', NULL, NULL, now(), now(), 'a test')"
            )
        path = backed_up(old, tmp_path)
        old.close()
    restore_backup(elsewhere, path, system_now())
    assert table(elsewhere, "SELECT version_num FROM alembic_version") == [(known_revisions()[0],)]
    assert table(elsewhere, "SELECT dispenser_id, seq, line FROM facts") == [("HD-001", 1, b"x")]


@pytest.mark.soak
def test_a_backup_of_one_version_of_postgresql_goes_into_another(used: Database, tmp_path: Path) -> None:
    """The server of these tests is a local one where there is one; the other is the wheel's."""
    with scratch_directory() as directory:
        server = EmbeddedPostgres(directory / "postgres", durable=False)
        other = Database(server.start().url, patient=True)
        restore_backup(other, backed_up(used, tmp_path), system_now())
        assert content(other) == content(used)
        send(other, machine_of_the_day())
        put_back(used, write_backup(other, tmp_path / "back", system_now()).path)
        assert content(other) == content(used)
        other.close()
        server.remove()
    with used.begin() as connection:
        assert audit(connection).differences == []


def test_a_backup_overwrites_nothing(used: Database, tmp_path: Path) -> None:
    path = backed_up(used, tmp_path)
    with pytest.raises(InputError, match="does not exist yet"):
        write_backup(used, path, system_now())
    with pytest.raises(InputError, match="No such file"):
        write_backup(used, tmp_path / "absent" / "file", system_now())


def test_the_command_writes_a_backup_and_refuses_to_lose_what_is_there(
    used: Database, database_url: str, tmp_path: Path
) -> None:
    """That it restores is shown by the drill."""
    used.close()
    done = run("backup", str(tmp_path), url=database_url)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "--replace" in refused(run("restore", str(tmp_path), url=database_url))
