"""What surrounds every route: security headers, the limit on bodies, CSRF, health and metrics."""

import hmac
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from fleet_server.database import DatabaseUnavailableError
from fleet_server.errors import ForbiddenError
from fleet_server.settings import Settings
from fleet_server.web.context import Parts, person
from fleet_server.web.health import exposition
from fleet_server.web.problems import problem

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


EVERY_ROUTE = [Depends(person), Depends(csrf)]


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
