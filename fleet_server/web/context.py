"""What every route gets: the services of this process, a transaction, and who asks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Protocol

from fastapi import Depends, Request

from fleet_server.auth import service as auth
from fleet_server.auth.service import Person
from fleet_server.clock import SettableClock, system_now
from fleet_server.database import Connection, Database
from fleet_server.errors import ForbiddenError, InputError
from fleet_server.jobs.schedule import Job
from fleet_server.settings import Settings
from fleet_server.web.access import ACCESS, PUBLIC

UNSAFE = frozenset({"POST", "PUT", "PATCH", "DELETE"})


class NotSignedInError(InputError):
    """Nobody is signed in."""

    status = 401


class Sending(Protocol):
    """What routes ask of ingest, where this process has it; the counters run since its start."""

    sent: int
    handled: int

    @property
    def connected(self) -> bool: ...

    @property
    def backlog(self) -> int: ...

    def flush(self) -> None:
        """Send everything that waits for machines now."""
        ...

    def await_handled(self, messages: int) -> None:
        """Wait, not for ever, until so many messages of machines are committed."""
        ...


@dataclass
class Services:
    """The parts of this process that routes use; `app.py` puts them together."""

    settings: Settings
    database: Database
    clock: SettableClock
    jobs: Sequence[Job]
    ingest: Sending | None = None


def services(request: Request) -> Services:
    """Return the parts of this process."""
    found: Services = request.app.state.services
    return found


def cookie_name(settings: Settings) -> str:
    """Name the session cookie; with `__Host-` a browser lets no other host or path set it."""
    return "__Host-session" if settings.cookie_secure else "session"


def person(request: Request, parts: Annotated[Services, Depends(services)]) -> Person | None:
    """Return who asks; raises NotSignedInError or ForbiddenError by the table of routes, default deny."""
    path = request.scope["route"].path
    allowed = ACCESS.get((request.method, path))
    if allowed is None:
        raise ForbiddenError("route", f"{request.method} {path}", "a route of the access table")
    found, by_cookie = _recognise(request, parts)
    request.state.person = found
    if allowed == PUBLIC:
        return found
    if found is None:
        raise NotSignedInError("authorization", None, "a session: sign in first")
    if found.role not in allowed:
        raise ForbiddenError("role", str(found.role), f"one of {', '.join(sorted(allowed))}")
    if by_cookie and request.method in UNSAFE:
        request.state.csrf_due = found.csrf_token
    return found


def _recognise(request: Request, parts: Services) -> tuple[Person | None, bool]:
    header = request.headers.get("authorization", "")
    cookie = request.cookies.get(cookie_name(parts.settings))
    token = header[7:] if header.startswith("Bearer ") else cookie
    if not token:
        return None, False
    with parts.database.begin() as connection:
        return auth.recognise(connection, token, system_now()), not header


def signed_in(found: Annotated[Person | None, Depends(person)]) -> Person:
    """Return who asks, where somebody must."""
    if found is None:
        raise NotSignedInError("authorization", None, "a session: sign in first")
    return found


def transaction(parts: Annotated[Services, Depends(services)]) -> Iterator[Connection]:
    """One transaction for the route."""
    with parts.database.begin() as connection:
        yield connection


def now(parts: Annotated[Services, Depends(services)]) -> datetime:
    """The fleet's time."""
    return parts.clock.now()


async def fields(request: Request) -> dict[str, str]:
    """The fields of a form. What then works with the database is no coroutine: it would stop the loop that ends others' transactions."""
    return {name: str(value) for name, value in (await request.form()).items()}


Parts = Annotated[Services, Depends(services)]
SignedIn = Annotated[Person, Depends(signed_in)]
Now = Annotated[datetime, Depends(now)]
Fields = Annotated[dict[str, str], Depends(fields)]
# With scope "function" the commit comes before the reply: a 200 is never said of what then fails.
Transaction = Annotated[Connection, Depends(transaction, scope="function")]
