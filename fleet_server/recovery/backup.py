"""A backup: one file with a consistent picture of the database, and the way back from it.

The file is a ZIP archive with one part for each table (PostgreSQL's COPY, as text) and `manifest.json`, which names the
schema's revision, the moment, and rows and SHA-256 of every part. It appears under its name only when it is whole.
"""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Final

from fleet_server.database import Connection, Database
from fleet_server.devices.store import read_state, server_epoch
from fleet_server.errors import ConflictError, InputError
from fleet_server.recovery import backup_store as store
from fleet_server.recovery.epochs import EPOCH_BEFORE_ALL, begin_epoch
from fleet_server.schema import known_revisions, upgrade

FORMAT: Final = "dispenser-fleet backup"
FORMAT_VERSION: Final = 1
SUFFIX: Final = ".fleetbackup"
MANIFEST: Final = "manifest.json"
CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Written:
    """A backup that was written."""

    path: Path
    tables: int
    rows: int


@dataclass(frozen=True, slots=True)
class Restored:
    """A database that was restored, and the epoch that began with it."""

    taken_at: datetime
    epoch: int
    tables: int
    rows: int


# ---------------------------------------------------------------- backup


def write_backup(database: Database, target: Path, wall: datetime) -> Written:
    """Write a backup to a new file, or under a name of its moment into a directory; raises InputError."""
    path = target / f"{wall:%Y%m%dT%H%M%SZ}{SUFFIX}" if target.is_dir() else target
    if path.exists():
        raise InputError("file", str(path), "a file that does not exist yet")
    partial = path.with_name(f".{path.name}.partial")
    try:
        with os.fdopen(os.open(partial, os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o600), "w+b") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                parts = _write_parts(database, archive, wall)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise InputError("file", str(path), f"a place that can be written ({error.strerror})") from None
    finally:
        partial.unlink(missing_ok=True)
    return Written(path, len(parts), sum(part["rows"] for part in parts))


def _write_parts(database: Database, archive: zipfile.ZipFile, wall: datetime) -> list[dict[str, Any]]:
    with database.begin() as connection:
        store.freeze(connection)
        revision = store.revision(connection)
        if revision is None:
            raise InputError("database_url", "(not shown)", "a database with our schema")
        epoch = read_state(connection, "epoch") or EPOCH_BEFORE_ALL
        parts = []
        for shape in store.shapes(connection):
            if shape.name not in store.NOT_KEPT:
                with archive.open(f"{shape.name}.copy", "w", force_zip64=True) as part:
                    parts.append(_write_part(connection, shape, part))
    manifest = {
        "format": FORMAT, "format_version": FORMAT_VERSION, "schema_revision": revision, "epoch": epoch,
        "taken_at": wall.isoformat(), "tables": parts,
    }  # fmt: skip
    archive.writestr(MANIFEST, json.dumps(manifest, indent=1))
    return parts


def _write_part(connection: Connection, shape: store.Shape, part: IO[bytes]) -> dict[str, Any]:
    digest, rows = hashlib.sha256(), 0
    for chunk in store.copy_out(connection, shape):
        digest.update(chunk)
        # A line feed inside a value is written as \\n: each real one ends a row.
        rows += chunk.count(b"\n")
        part.write(chunk)
    return {"table": shape.name, "columns": shape.columns, "rows": rows, "sha256": digest.hexdigest()}


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---------------------------------------------------------------- restore


def restore_backup(
    database: Database, source: Path, wall: datetime, *, replace: bool = False, epoch_after: int = 0
) -> Restored:
    """Put a backup into a database and begin a new epoch, in one transaction: it is all there or nothing has changed.

    Raises InputError for a file that is none of ours, damaged or newer than this version, ConflictError for a database
    that is in use or not empty.
    """
    path = _newest(source) if source.is_dir() else source
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = _manifest(archive, path)
            if wall < datetime.fromisoformat(manifest["taken_at"]):
                raise InputError("clock", wall.isoformat(), f"a time after that of the backup, {manifest['taken_at']}")
            return _restore(database, archive, manifest, wall, replace=replace, epoch_after=epoch_after)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise InputError("file", str(path), f"a whole backup ({error})") from None
    except OSError as error:
        raise InputError("file", str(path), f"a backup that can be read ({error.strerror or error})") from None


def _newest(directory: Path) -> Path:
    found = sorted(directory.glob(f"*{SUFFIX}"))
    if not found:
        raise InputError("file", str(directory), f"a directory with a backup (*{SUFFIX})")
    return found[-1]


def _manifest(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(archive.read(MANIFEST))
    except (KeyError, ValueError):
        raise InputError("file", str(path), f"a backup of ours, with a {MANIFEST}") from None
    if manifest.get("format") != FORMAT:
        raise InputError("file", str(path), f"a backup of ours ({FORMAT!r} in its {MANIFEST})")
    known = known_revisions()
    if manifest["format_version"] > FORMAT_VERSION or manifest["schema_revision"] not in known:
        raise InputError("schema_revision", manifest["schema_revision"], f"one this version knows, up to {known[0]}")
    return manifest


def _restore(
    database: Database,
    archive: zipfile.ZipFile,
    manifest: dict[str, Any],
    wall: datetime,
    *,
    replace: bool,
    epoch_after: int,
) -> Restored:
    with database.begin() as connection:
        epoch_after = max(epoch_after, _prepare(connection, manifest["schema_revision"], replace=replace))
        rows = 0
        for part in manifest["tables"]:
            shape = store.Shape(part["table"], tuple(part["columns"]))
            found, digest = _read_part(connection, archive, shape)
            if (found, digest) != (part["rows"], part["sha256"]):
                raise InputError("file", f"{shape.name}.copy", f"{part['rows']} rows with SHA-256 {part['sha256']}")
            rows += found
        store.restart_sequences(connection)
        upgrade(connection)
        taken_at = datetime.fromisoformat(manifest["taken_at"])
        epoch = begin_epoch(connection, wall, after=epoch_after, taken_at=taken_at)
    return Restored(taken_at, epoch, len(manifest["tables"]), rows)


def _prepare(connection: Connection, revision: str, *, replace: bool) -> int:
    """Make an empty schema of the backup's revision; returns the epoch of what was there."""
    refuse_if_in_use(connection)
    epoch = 0
    if store.revision(connection) is not None:
        if not store.is_empty(connection):
            if not replace:
                raise ConflictError("database", "not empty", "an empty database, or --replace")
            epoch = server_epoch(connection)
        store.drop_everything(connection)
    upgrade(connection, revision)
    return epoch


def refuse_if_in_use(connection: Connection) -> None:
    """Raise ConflictError while anybody else is connected: a server that runs on would know nothing of the new epoch."""
    others = store.others_connected(connection)
    if others:
        raise ConflictError("database", f"{others} other sessions", "none: stop every server first")


def _read_part(connection: Connection, archive: zipfile.ZipFile, shape: store.Shape) -> tuple[int, str]:
    digest = hashlib.sha256()

    def chunks() -> Iterator[bytes]:
        with archive.open(f"{shape.name}.copy") as part:
            while chunk := part.read(CHUNK_BYTES):
                digest.update(chunk)
                yield chunk

    try:
        rows = store.copy_in(connection, shape, chunks())
    except KeyError:
        raise InputError("file", f"{shape.name}.copy", "a part of the backup; it is missing") from None
    except ValueError as error:
        raise InputError("file", f"{shape.name}.copy", f"rows of that table ({error})") from None
    return rows, digest.hexdigest()
