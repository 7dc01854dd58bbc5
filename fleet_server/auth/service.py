"""Signing in and out. Every failure looks the same from outside, and takes about as long."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cache
from typing import Final

from pwdlib import PasswordHash

from fleet_server.auth import store
from fleet_server.database import Connection
from fleet_server.errors import InputError

IDLE: Final = timedelta(minutes=15)
IDLE_RESTOCKER: Final = timedelta(hours=12)
"""A phone in a van: the day's work must not need a second sign-in."""
ATTEMPTS_MAX: Final = 8
ATTEMPTS_WITHIN: Final = timedelta(minutes=15)
PASSWORD_LENGTH_MIN: Final = 10


class Role(StrEnum):
    """What a user is."""

    RESTOCKER = "restocker"
    DISPATCHER = "dispatcher"
    SUPERVISOR = "supervisor"
    VIEWER = "viewer"
    ADMINISTRATOR = "administrator"


@dataclass(frozen=True, slots=True)
class Person:
    """Who is signed in, in which session."""

    name: str
    role: Role
    depot_id: str | None
    csrf_token: str
    token: str

    @property
    def actor(self) -> str:
        """The name under which the ledger and the log know this person."""
        return f"user:{self.name}"


class SignInError(InputError):
    """Name or password are wrong, or there were too many attempts."""

    status = 401


class TooManyAttemptsError(SignInError):
    """Signing in is closed for a while."""

    status = 429


@cache
def _hasher() -> PasswordHash:
    return PasswordHash.recommended()


@cache
def _decoy() -> str:
    """A hash for names that do not exist, so that they take as long as those that do."""
    return _hasher().hash(secrets.token_hex(16))


def add_user(
    connection: Connection, name: str, role: str, password: str, now: datetime, depot_id: str | None = None
) -> None:
    """Add a user, or change role and password of one."""
    if role not in set(Role):
        raise InputError("role", role, f"one of {', '.join(Role)}")
    if len(password) < PASSWORD_LENGTH_MIN:
        raise InputError("password", "(not shown)", f"at least {PASSWORD_LENGTH_MIN} characters")
    if not name.isidentifier() or len(name) > 40:  # noqa: PLR2004 - fits every column and page
        raise InputError("name", name, "letters, digits and _, at most 40")
    store.write_user(connection, name, role, depot_id, _hasher().hash(password), now)
    store.write_log(connection, now, "system:cli", "user_written", {"name": name, "role": role})


def note_attempt(connection: Connection, name: str, address: str, now: datetime) -> list[int]:
    """Note an attempt against account and address before it is judged, so that many at once cannot pass the limit.

    Returns the notes' ids. Raises TooManyAttemptsError where an account or an address has failed too often.
    """
    subjects = (f"user:{name}", f"address:{address}")
    store.lock_attempts(connection, subjects)
    for subject in subjects:
        if store.count_attempts(connection, subject, now - ATTEMPTS_WITHIN) >= ATTEMPTS_MAX:
            raise TooManyAttemptsError("user", name, "a pause: too many failed attempts")
    return [store.note_attempt(connection, subject, now) for subject in subjects]


def verify(connection: Connection, name: str, password: str) -> bool:
    """Tell whether the password is this user's."""
    user = store.read_user(connection, name)
    good = _hasher().verify(password, user["password_hash"] if user else _decoy())
    return bool(good and user and user["enabled"])


def note_failure(connection: Connection, name: str, now: datetime) -> None:
    """Log a failed attempt, which stays noted."""
    store.write_log(connection, now, f"user:{name[:40]}", "sign_in_refused", {})


def begin(connection: Connection, name: str, noted: Sequence[int], now: datetime) -> Person:
    """Begin a session of a user whose password was right; `noted` are the ids of this attempt."""
    store.forget_attempts(connection, noted)
    user = store.read_user(connection, name)
    token, csrf_token = secrets.token_urlsafe(32), secrets.token_urlsafe(24)
    role = Role(user["role"])
    store.write_session(connection, _digest(token), name, csrf_token, now, now + _idle(role))
    store.write_log(connection, now, f"user:{name}", "signed_in", {})
    return Person(name, role, user["depot_id"], csrf_token, token)


def recognise(connection: Connection, token: str, now: datetime) -> Person | None:
    """Return who holds this token, and keep the session alive."""
    session = store.read_session(connection, _digest(token), now)
    if session is None:
        return None
    role = Role(session["role"])
    if now - session["seen_at"] > timedelta(minutes=1):
        store.extend_session(connection, _digest(token), now, now + _idle(role))
    return Person(session["user_name"], role, session["depot_id"], session["csrf_token"], token)


def end(connection: Connection, person: Person, now: datetime) -> None:
    """Sign out: the token is worth nothing from now on."""
    store.end_session(connection, _digest(person.token))
    store.write_log(connection, now, person.actor, "signed_out", {})


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _idle(role: Role) -> timedelta:
    return IDLE_RESTOCKER if role is Role.RESTOCKER else IDLE
