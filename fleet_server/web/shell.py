"""What surrounds every route: security headers, the limit on bodies, CSRF, health and metrics."""

import hmac
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from fleet_server.database import DatabaseUnavailableError
from fleet_server.errors import ForbiddenError, InputError
from fleet_server.settings import Settings
from fleet_server.web.context import Parts, person
from fleet_server.web.health import exposition
from fleet_server.web.problems import is_secret, problem

BODY_BYTES_MAX = 256 * 1024
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; manifest-src 'self'"
)

health = APIRouter()


@health.get("/healthz", tags=["health"])
def healthz() -> PlainTextResponse:
    """The process runs."""
    return PlainTextResponse("ok\n")


@health.get("/readyz", tags=["health"])
def readyz(parts: Parts) -> JSONResponse:
    """The process can do its work: the database answers, and the broker where this process ingests."""
    checks = {"database": True, "broker": parts.ingest is None or parts.ingest.connected}
    try:
        parts.database.check()
    except DatabaseUnavailableError:
        checks["database"] = False
    return JSONResponse(checks, 200 if all(checks.values()) else 503)


@health.get("/metrics", tags=["health"])
def metrics(parts: Parts) -> Response:
    """Prometheus metrics of this process, and of the fleet as the database knows it."""
    return Response(exposition(parts), media_type=CONTENT_TYPE_LATEST)


async def csrf(request: Request) -> None:
    """Refuse a form that a browser sends with our cookie but without our token."""
    due = getattr(request.state, "csrf_due", None)
    if due is None:
        return
    given = request.headers.get("x-csrf-token")
    if given is None and "form" in request.headers.get("content-type", ""):
        given = parse_qs((await request.body()).decode(errors="replace")).get("csrf", [""])[0]
    if not hmac.compare_digest(given or "", due):
        raise ForbiddenError("csrf", "(not shown)", "the token of this session's pages: load the page again")


async def storable(request: Request) -> None:
    """Refuse text that no database keeps, by the name of its field."""
    texts: list[tuple[str, Any]] = [*request.path_params.items(), *request.query_params.multi_items()]
    if "form" in request.headers.get("content-type", ""):
        texts += (await request.form()).multi_items()
    elif b"\\u0000" in (body := await request.body()):
        with suppress(ValueError):  # no JSON: whoever reads it says so
            texts += _texts(json.loads(body))
    for name, text in texts:
        if "\0" in str(text):
            shown = "(not shown)" if is_secret(name) else str(text)[:60]
            raise InputError(name, shown, "text without a NUL character")


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield all texts in a JSON value, each with its place."""
    match value:
        case str():
            yield name, value
        case list() | dict():
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                yield from _texts(item, f"{name}.{key}" if name else str(key))


EVERY_ROUTE = [Depends(person), Depends(csrf), Depends(storable)]


def install(app: FastAPI, settings: Settings) -> None:
    """Put the headers on every answer and the limit on every body."""

    @app.middleware("http")
    async def surround(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        length = request.headers.get("content-length", "0")
        chunked = "transfer-encoding" in request.headers
        if chunked or not length.isdigit() or int(length) > BODY_BYTES_MAX:
            response = problem(
                request, 413, f"body of {length} bytes: expected at most {BODY_BYTES_MAX}, with its length"
            )
        else:
            response = await call_next(request)
        response.headers["content-security-policy"] = CONTENT_SECURITY_POLICY
        response.headers["x-content-type-options"] = "nosniff"
        response.headers["referrer-policy"] = "same-origin"
        response.headers["x-frame-options"] = "DENY"
        if not request.url.path.startswith("/static/"):
            response.headers["cache-control"] = "no-store"
        if settings.cookie_secure:
            response.headers["strict-transport-security"] = "max-age=31536000; includeSubDomains"
        return response
