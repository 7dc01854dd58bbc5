"""A real server on a port of its own, and people who speak with it over HTTP."""

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import httpx2
import uvicorn

from fleet_server.app import create_app
from fleet_server.auth import service as auth
from fleet_server.auth.store import write_user
from fleet_server.clock import system_now
from fleet_server.database import Database
from fleet_server.settings import Settings

ROLES: Final = ("restocker", "dispatcher", "supervisor", "viewer", "administrator")
PASSWORD: Final = "a-long-enough-password"


class Site:
    """A running server: `api(role)` and `browser(role)` are signed-in clients, `api(None)` is a stranger."""

    def __init__(self, url: str, database: Database) -> None:
        self.url, self.database = url, database
        self._clients: list[httpx2.Client] = []

    def _client(self, **more: Any) -> httpx2.Client:
        client = httpx2.Client(base_url=self.url, timeout=20, **more)
        self._clients.append(client)
        return client

    def api(self, role: str | None) -> httpx2.Client:
        client = self._client()
        if role is not None:
            answer = client.post("/api/v1/sign-in", json={"user": role, "password": PASSWORD})
            assert answer.status_code == 200, answer.text
            client.headers["authorization"] = f"Bearer {answer.json()['token']}"
        return client

    def browser(self, role: str) -> httpx2.Client:
        client = self._client(headers={"accept": "text/html"})
        answer = client.post("/sign-in", data={"user": role, "password": PASSWORD})
        assert answer.status_code == 303, answer.text
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()


@cache
def _password_hash() -> str:
    """A hash is slow on purpose: one serves all sites."""
    return auth._hasher().hash(PASSWORD)


@contextmanager
def serving(database_url: str, people: Sequence[str] = ROLES, port: int = 0, **given: Any) -> Iterator[Site]:
    """Run a server over this database until the block ends, which `people` may sign in to. `port` 0: any."""
    database = Database(database_url)
    with database.begin() as connection:
        for role in people:
            depot = "HUANGDAO" if role == "restocker" else None
            write_user(connection, role, role, depot, _password_hash(), system_now())
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    chosen: dict[str, Any] = {"roles": ("web",), "production": False, "cookie_secure": False} | given
    settings = Settings(database_url=database_url, **chosen)
    server = uvicorn.Server(uvicorn.Config(create_app(settings), log_level="warning", server_header=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    site = Site(f"http://127.0.0.1:{listening.getsockname()[1]}", database)
    try:
        yield site
    finally:
        site.close()
        server.should_exit = True
        thread.join(10)
        database.close()
        listening.close()
