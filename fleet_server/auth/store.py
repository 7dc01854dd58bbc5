"""Tables of users and sessions. Times here are the wall clock's: a played clock must not keep anybody signed in."""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Identity, LargeBinary, Table, Text, delete, select, text, update
from sqlalchemy.dialects.postgresql import JSONB, insert

from fleet_server.database import Connection, metadata
from fleet_server.devices.store import MOMENT

users = Table(
    "users",
    metadata,
    Column("name", Text, primary_key=True),
    Column("role", Text, nullable=False),
    Column("depot_id", Text),
    Column("password_hash", Text, nullable=False),
    Column("enabled", Boolean, nullable=False, server_default=text("true")),
    Column("created_at", MOMENT, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    # Only the digest of the token is kept: who reads this table cannot sign in with it.
    Column("token_digest", LargeBinary, primary_key=True),
    Column("user_name", Text, nullable=False, index=True),
    Column("csrf_token", Text, nullable=False),
    Column("began_at", MOMENT, nullable=False),
    Column("seen_at", MOMENT, nullable=False),
    Column("ends_at", MOMENT, nullable=False),
)

sign_in_attempts = Table(
    "sign_in_attempts",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("subject", Text, nullable=False, index=True),
    Column("at", MOMENT, nullable=False),
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("at", MOMENT, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("detail", JSONB, nullable=False),
)


def write_user(
    connection: Connection, name: str, role: str, depot_id: str | None, password_hash: str, now: datetime
) -> None:
    """Add a user, or give an existing one this role and password."""
    values = {"role": role, "depot_id": depot_id, "password_hash": password_hash, "enabled": True}
    query = insert(users).values(name=name, created_at=now, **values)
    connection.execute(query.on_conflict_do_update(index_elements=["name"], set_=values))


def read_user(connection: Connection, name: str) -> Any:
    """Return a user's row, or None."""
    return connection.execute(select(users).where(users.c.name == name)).mappings().first()


def write_session(
    connection: Connection, digest: bytes, name: str, csrf_token: str, now: datetime, ends_at: datetime
) -> None:
    """Begin a session."""
    connection.execute(
        insert(sessions).values(
            token_digest=digest, user_name=name, csrf_token=csrf_token, began_at=now, seen_at=now, ends_at=ends_at
        )
    )


def read_session(connection: Connection, digest: bytes, now: datetime) -> Any:
    """Return a session that has not ended, with its user."""
    query = (
        select(sessions, users.c.role, users.c.depot_id)
        .join(users, users.c.name == sessions.c.user_name)
        .where(sessions.c.token_digest == digest, sessions.c.ends_at > now, users.c.enabled)
    )
    return connection.execute(query).mappings().first()


def extend_session(connection: Connection, digest: bytes, now: datetime, ends_at: datetime) -> None:
    """Keep a session that is used."""
    connection.execute(update(sessions).where(sessions.c.token_digest == digest).values(seen_at=now, ends_at=ends_at))


def end_session(connection: Connection, digest: bytes) -> None:
    """End a session."""
    connection.execute(delete(sessions).where(sessions.c.token_digest == digest))


def lock_attempts(connection: Connection, subjects: Sequence[str]) -> None:
    """Let nobody else count or note attempts of these subjects until the transaction ends."""
    for key in sorted({int.from_bytes(hashlib.sha256(s.encode()).digest()[:8], signed=True) for s in subjects}):
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


def count_attempts(connection: Connection, subject: str, since: datetime) -> int:
    """Return how often signing in was tried for a subject since a moment and has not succeeded."""
    query = text("SELECT count(*) FROM sign_in_attempts WHERE subject = :subject AND at > :since")
    return int(connection.execute(query, {"subject": subject, "since": since}).scalar_one())


def note_attempt(connection: Connection, subject: str, now: datetime) -> int:
    """Note that signing in is tried; returns the note's id."""
    query = insert(sign_in_attempts).values(subject=subject, at=now).returning(sign_in_attempts.c.id)
    return int(connection.execute(query).scalar_one())


def forget_attempts(connection: Connection, ids: Sequence[int]) -> None:
    """Forget attempts: they succeeded."""
    connection.execute(delete(sign_in_attempts).where(sign_in_attempts.c.id.in_(ids)))


def write_log(connection: Connection, at: datetime, actor: str, action: str, detail: dict[str, Any]) -> None:
    """Append to the audit log."""
    connection.execute(insert(audit_log).values(at=at, actor=actor, action=action, detail=detail))


def forget(connection: Connection, before: datetime) -> None:
    """Drop ended sessions and old attempts."""
    connection.execute(delete(sessions).where(sessions.c.ends_at < before))
    connection.execute(delete(sign_in_attempts).where(sign_in_attempts.c.at < before))
