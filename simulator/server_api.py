"""The server's REST API, as a restocker's phone uses it."""

from typing import Any

import httpx2 as httpx

from simulator.real_time import monotonic, pause


class ServerError(RuntimeError):
    """The server refuses, or does not answer within our patience."""


class ServerApi:
    """One signed-in person."""

    def __init__(self, url: str, user: str, password: str, patience_s: float = 120) -> None:
        self._patience_s = patience_s
        self._user, self._password = user, password
        self._client = httpx.Client(base_url=f"{url.rstrip('/')}/api/v1", timeout=30)
        self._ready_url = f"{url.rstrip('/')}/readyz"
        self._token: str | None = None

    def sign_in(self) -> None:
        """Get a token."""
        answer = self._send("POST", "/sign-in", {"user": self._user, "password": self._password}, signed=False)
        self._token = answer["token"]

    def get(self, path: str) -> Any:
        """Read something."""
        return self._send("GET", path, None)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Change something; everything that we post may be posted again."""
        return self._send("POST", path, body or {})

    def is_ready(self) -> bool:
        """Tell whether the server says that it is ready, now."""
        try:
            return self._client.get(self._ready_url).is_success
        except httpx.TransportError:
            return False

    def _send(self, method: str, path: str, body: Any, *, signed: bool = True) -> Any:
        """Ask until the server answers: it may be restarting. Its refusal is final."""
        deadline = monotonic() + self._patience_s
        while True:
            if signed and self._token is None:
                self.sign_in()
            headers = {"Authorization": f"Bearer {self._token}"} if signed else {}
            try:
                answer = self._client.request(method, path, json=body, headers=headers)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if answer.status_code == httpx.codes.UNAUTHORIZED and signed:
                    self._token = None
                    continue
                if answer.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                    if answer.is_error:
                        raise ServerError(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
                    return answer.json()
                problem = f"{answer.status_code} {answer.text[:200]}"
            if monotonic() > deadline:
                raise ServerError(f"{method} {path}: {problem}")
            pause(0.5)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
