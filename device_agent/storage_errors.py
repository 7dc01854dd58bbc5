"""How storage fails: it may be away, or it may have lost what it was given."""

import os
import sqlite3
from pathlib import Path
from typing import Final


class OutboxError(RuntimeError):
    """The outbox cannot be read or written now: nothing may be vended."""


class OutboxDamagedError(OutboxError):
    """What was committed is not what is there; the file is set aside whole, and a new stream begins."""


AWAY: Final = frozenset(
    {
        sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PERM, sqlite3.SQLITE_INTERRUPT,
    }
)  # fmt: skip
"""SQLite's primary result codes that say nothing of what the file holds."""


def code_of(error: Exception) -> int | None:
    """SQLite's primary result code, where there is one."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF


def at_opening(error: Exception, path: Path | str) -> OutboxError:
    """Tell a damaged file from one that cannot be reached: only the first may be set aside."""
    code = code_of(error)
    # A file system mounted read-only after an error is away; a writable file that calls itself read-only is damaged.
    away = code in AWAY or (code == sqlite3.SQLITE_READONLY and not os.access(path, os.W_OK))
    return (OutboxError if away else OutboxDamagedError)(f"outbox {path}: {error}")
