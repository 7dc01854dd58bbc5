"""The server's REST API, as a restocker's phone uses it: over HTTP, or in this process."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import httpx2 as httpx

from simulator.real_time import monotonic, pause

UNAUTHORIZED: Final = 401
REFUSED: Final = 400
FAILED: Final = 500

Transport = Callable[[str, str, Any, Mapping[str, str]], tuple[int, bytes]]
"""(method, path, JSON body or None, headers) to (status, body); raises ServerAwayError."""


class ServerError(RuntimeError):
    """The server refuses, with its `status`, or does not answer within our patience."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class ServerAwayError(RuntimeError):
    """Nothing answers at the moment."""


class HttpTransport:
    """Requests over HTTP, each on a connection that is kept open."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url.rstrip("/"), timeout=30)

    def __call__(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> tuple[int, bytes]:
        try:
            answer = self._client.request(method, path, json=body, headers=dict(headers))
        except httpx.TransportError as error:
            raise ServerAwayError(f"{type(error).__name__}: {error}") from error
        return answer.status_code, answer.content


class ServerApi:
    """One signed-in person."""

    def __init__(self, transport: Transport, user: str, password: str, patience_s: float = 120) -> None:
        self._transport, self._patience_s = transport, patience_s
        self._user, self._password = user, password
        self._token: str | None = None
        self.epoch: int | None = None
        """The server's epoch, as it was when we signed in; a restore ends all sessions."""

    def sign_in(self) -> None:
        """Get a token."""
        answer = self._send("POST", "/sign-in", {"user": self._user, "password": self._password}, signed=False)
        self._token, self.epoch = answer["token"], answer["epoch"]

    def get(self, path: str) -> Any:
        """Read something."""
        return self._send("GET", path, None)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Change something; everything that we post may be posted again."""
        return self._send("POST", path, body or {})

    def is_ready(self) -> bool:
        """Tell whether the server says that it is ready, now."""
        try:
            return self._transport("GET", "/readyz", None, {})[0] < REFUSED
        except ServerAwayError:
            return False

    def _send(self, method: str, path: str, body: Any, *, signed: bool = True) -> Any:
        """Ask until the server answers: it may be restarting. Its refusal is final."""
        deadline = monotonic() + self._patience_s
        while True:
            if signed and self._token is None:
                self.sign_in()
            headers = {"Authorization": f"Bearer {self._token}"} if signed else {}
            try:
                status, answer = self._transport(method, f"/api/v1{path}", body, headers)
            except ServerAwayError as error:
                problem = str(error)
            else:
                if status == UNAUTHORIZED and signed:
                    self._token = None
                    continue
                words = answer.decode(errors="replace")[:300]
                if REFUSED <= status < FAILED:
                    raise ServerError(f"{method} {path}: {status} {words}", status)
                if status < REFUSED:
                    return json.loads(answer)
                problem = f"{status} {words}"
            if monotonic() > deadline:
                raise ServerError(f"{method} {path}: {problem}")
            pause(0.5)
