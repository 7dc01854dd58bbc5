"""Calls the routes of the REST API in this process: the same functions, access table and bodies, without HTTP around them.

For simulations, which ask tens of thousands of times; that HTTP itself does what it should is for others to show.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_type_hints
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, TypeAdapter, ValidationError

from fleet_server.auth import service as auth
from fleet_server.errors import ForbiddenError, InputError, NotFoundError
from fleet_server.web import api, context, recovery_api
from fleet_server.web.access import ACCESS, PUBLIC
from fleet_server.web.context import NotSignedInError, Services
from protocol.codec import explain

SIGN_IN = "/api/v1/sign-in"


@dataclass(frozen=True, slots=True)
class Call:
    """One route: what it is asked as, and how each of its arguments is found."""

    method: str
    path: str
    pattern: re.Pattern[str]
    function: Callable[..., BaseModel]
    arguments: Mapping[str, Any]
    defaults: Mapping[str, Any]


class Routes:
    """The REST API of one process, as plain calls."""

    def __init__(self, parts: Services) -> None:
        self._parts = parts
        routes = [*api.router.routes, *recovery_api.router.routes]
        self._calls = [_call(route) for route in routes if getattr(route, "path", SIGN_IN) != SIGN_IN]
        self._people: dict[str, auth.Person] = {}

    def ask(self, method: str, path: str, body: Any, token: str | None) -> tuple[int, BaseModel | InputError]:
        """Call a route: (status, answer), or the status and the error as which it is refused."""
        try:
            answer: BaseModel = self._ask(method, urlsplit(path), body, token)
        except ValidationError as error:
            return 422, InputError("body", explain(error), "a valid one")
        except InputError as error:
            return error.status, error
        return 200, answer

    def _ask(self, method: str, where: Any, body: Any, token: str | None) -> BaseModel:
        if (method, where.path) == ("POST", SIGN_IN):
            person = api.sign_in_person(self._parts, body["user"], body["password"], "in process")
            self._people[person.token] = person
            return api.session_of(self._parts, person)
        for call in self._calls:
            found = call.pattern.fullmatch(where.path) if call.method == method else None
            if found is not None:
                given = found.groupdict() | dict(parse_qsl(where.query))
                return self._run(call, given, body, self._person(call, token))
        raise NotFoundError("route", f"{method} {where.path}", "a route of the REST API")

    def _person(self, call: Call, token: str | None) -> auth.Person | None:
        allowed = ACCESS.get((call.method, call.path))
        person = self._people.get(token or "")
        if allowed is None:
            raise ForbiddenError("route", f"{call.method} {call.path}", "a route of the access table")
        if allowed != PUBLIC and person is None:
            raise NotSignedInError("authorization", None, "a session: sign in first")
        if allowed != PUBLIC and person is not None and person.role not in allowed:
            raise ForbiddenError("role", str(person.role), f"one of {', '.join(sorted(allowed))}")
        return person

    def _run(self, call: Call, given: Mapping[str, str], body: Any, person: auth.Person | None) -> BaseModel:
        parts = self._parts
        values: dict[str, Any] = {}
        transaction: str | None = None
        for name, kind in call.arguments.items():
            if kind == context.Transaction:
                transaction = name
            elif kind == context.Parts:
                values[name] = parts
            elif kind == context.SignedIn:
                values[name] = person
            elif kind == context.Now:
                values[name] = parts.clock.now()
            elif name in given:
                values[name] = _adapter(kind).validate_python(given[name])
            elif name in call.defaults:
                values[name] = call.defaults[name]
            else:
                values[name] = kind.model_validate(body or {})
        if transaction is None:
            return call.function(**values)
        with parts.database.begin() as connection:
            return call.function(**values, **{transaction: connection})


_adapter = cache(TypeAdapter[Any])
"""To make one takes longer than most routes."""


def _call(route: Any) -> Call:
    pattern = re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", route.path))
    hints = get_type_hints(route.endpoint, include_extras=True)
    hints.pop("return", None)
    signature = inspect.signature(route.endpoint).parameters
    defaults = {name: p.default for name, p in signature.items() if p.default is not inspect.Parameter.empty}
    return Call(next(iter(route.methods)), route.path, pattern, route.endpoint, hints, defaults)
