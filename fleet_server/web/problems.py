"""Every error over HTTP: a problem document for programs, a page for people; never a traceback, never a version."""

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException

from fleet_server.database import DatabaseError, is_disconnect
from fleet_server.errors import InputError
from fleet_server.web.context import NotSignedInError

log = structlog.get_logger()

TITLES = {
    400: "Bad request", 401: "Not signed in", 403: "Forbidden", 404: "Not found", 405: "Method not allowed",
    409: "Conflict", 413: "Too large", 422: "Invalid input", 429: "Too many attempts", 500: "Internal error",
    503: "Temporarily unavailable",
}  # fmt: skip


def problem(request: Request, status: int, detail: str, field: str | None = None) -> Response:
    """Return the error in the form that the caller reads."""
    if not request.url.path.startswith("/api/") and "text/html" in request.headers.get("accept", ""):
        from fleet_server.web.pages import error_page

        return error_page(request, status, detail)
    body = {"type": "about:blank", "title": TITLES.get(status, "Error"), "status": status, "detail": detail}
    if field is not None:
        body["field"] = field
    return JSONResponse(body, status, media_type="application/problem+json")


def is_secret(field: str) -> bool:
    """Tell whether what stands in a field is never to be shown."""
    return "password" in field or "token" in field


def install(app: FastAPI) -> None:
    """Let the app answer every failure so."""

    @app.exception_handler(InputError)
    def input_error(request: Request, error: InputError) -> Response:
        wants_page = "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/api/")
        if isinstance(error, NotSignedInError) and wants_page:
            return RedirectResponse("/sign-in", 303)
        return problem(request, error.status, str(error), error.field)

    @app.exception_handler(RequestValidationError)
    def validation_error(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if part not in {"body", "query", "path"}]
        field = ".".join(place) or "body"
        value = "(not shown)" if is_secret(field) else repr(first.get("input"))[:100]
        return problem(request, 422, f"{field} = {value}: {first['msg']}", field)

    @app.exception_handler(HTTPException)
    def http_error(request: Request, error: HTTPException) -> Response:
        return problem(request, error.status_code, str(error.detail))

    @app.exception_handler(DatabaseError)
    def database_error(request: Request, error: DatabaseError) -> Response:
        log.error("database error", path=request.url.path, error=str(error).splitlines()[0])
        if is_disconnect(error):
            return problem(request, 503, "the database is away; nothing was changed; try again")
        return problem(request, 500, "the database refused this; nothing was changed")

    @app.exception_handler(Exception)
    def other_error(request: Request, error: Exception) -> Response:
        log.error("request failed", path=request.url.path, error=repr(error)[:500])
        return problem(request, 500, "something went wrong here; nothing was changed")
