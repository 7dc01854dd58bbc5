"""A whole server in the caller's process, for simulations: no broker, no port, the shipped ingest and the shipped API.

`connect` is what `python -m simulator ... --in-process fleet_server.in_process:connect` names. Answers of ingest are given
before their transaction is committed: whoever calls must be lost together with this process, as a simulated fleet whose
outboxes are in memory is.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fleet_server.app import create_app
from fleet_server.errors import InputError
from fleet_server.ingest.worker import Message, Work, Worker
from fleet_server.settings import Settings
from fleet_server.web.direct import Routes

READY = "/readyz"
Arrived = tuple[str, bytes]
"""(topic, payload) on its way to machines."""


class _Outgoing:
    """Takes the place of the ingest process for the routes: what waits for machines goes to the caller."""

    connected = True
    backlog = 0

    def __init__(self, worker: Worker, deliver: Callable[[Sequence[Arrived]], None]) -> None:
        self._worker, self._deliver = worker, deliver
        self.sent = 0
        self.handled = 0
        self.again = False
        """What was sent may have been lost: the next time it is sent again."""

    def await_handled(self, messages: int) -> None:
        """Everything taken is committed before a route is asked."""

    def flush(self) -> None:
        """Hand over what waits for machines."""
        messages = self._worker.outbound(again=self.again)
        self.again = False
        self.sent += len(messages)
        self._deliver([(message.topic, message.payload) for message in messages])


class InProcessServer:
    """Ingest and API of one server over one database, played by the caller's clock."""

    def __init__(self, database_url: str) -> None:
        settings = Settings(database_url=database_url, roles=("web",), production=False, cookie_secure=False)
        self._app = create_app(settings)
        self._services = self._app.state.services
        self._worker = Worker(self._services.database, self._services.clock)
        self._open: Work | None = None
        self._arrived: list[Arrived] = []
        self._outgoing = _Outgoing(self._worker, self._arrived.extend)
        self._services.ingest = self._outgoing
        self._routes = Routes(self._services)

    def take(self, messages: Sequence[Arrived]) -> list[Arrived]:
        """Let ingest apply messages; returns its answers, and what it sent of itself since the last call."""
        if messages:
            if self._open is None:
                self._open = self._worker.begin()
            answers = self._open.take([Message(topic, payload) for topic, payload in messages])
            self._arrived += [(answer.topic, answer.payload) for answer in answers]
        arrived, self._arrived[:] = list(self._arrived), []
        return arrived

    def commit(self) -> None:
        """Make what was taken durable."""
        if self._open is not None:
            opened, self._open = self._open, None
            opened.commit()

    def crash(self) -> None:
        """Lose what was taken and not committed, with its answers and what was on its way, as a killed process does."""
        if self._open is not None:
            self._open.close()
            self._open = None
        self._arrived.clear()
        self._outgoing.again = True

    def request(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Ask the REST API: (status, body). What was taken before is committed first."""
        if path == READY:
            return 200, b"{}"
        self.commit()
        token = headers.get("Authorization", "").removeprefix("Bearer ") or None
        status, answer = self._routes.ask(method, path, body, token)
        if isinstance(answer, InputError):
            return status, json.dumps({"status": status, "detail": str(answer), "field": answer.field}).encode()
        return status, answer.model_dump_json().encode()

    def close(self) -> None:
        """Commit, and give everything back."""
        self.commit()
        self._services.database.close()


def connect(options: Mapping[str, str]) -> InProcessServer:
    """Make the server that the simulator asks for; `database_url` is the one option. Raises InputError."""
    unknown = sorted(set(options) - {"database_url"})
    if unknown or "database_url" not in options:
        raise InputError("in_process", ", ".join(unknown) or None, "the option database_url, and no other")
    return InProcessServer(options["database_url"])
