"""The ways between simulated machines and a server: a broker, or the server's own ingest in this process.

The same scenario and seed give the same facts on both. What reaches machines depends on what they have told and on
virtual time alone, never on how fast either side is.
"""

import importlib
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from protocol.topics import Channel, parse, topic

Arrived = tuple[str, Channel, bytes]
"""(dispenser_id, channel, payload) from the server."""


class Bridge(Protocol):
    """Publishes for every dispenser, and brings what the server sends."""

    @property
    def settling_s(self) -> float:
        """Real seconds in which a server that we have just met sends what it had waiting; 0: all is here at once."""
        ...

    @property
    def connected(self) -> bool:
        """Whether messages get through now."""
        ...

    @property
    def told(self) -> int:
        """Messages of QoS 1 that were published so far."""
        ...

    def publish(self, dispenser_id: str, channel: Channel, payload: bytes, qos: int, retain: bool) -> None:
        """Send one message of one dispenser."""
        ...

    def take(self, timeout_s: float) -> Arrived | None:
        """Wait for one message of the server."""
        ...

    def settle(self) -> None:
        """Hand over what was published and nobody has waited for."""
        ...


class InProcess(Protocol):
    """A server in this process, as `--in-process MODULE:FACTORY` makes it. Topics and payloads are those of the broker."""

    def take(self, messages: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        """Let ingest apply messages; returns its answers and what else waits for machines."""
        ...

    def request(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Ask the REST API: (status, body)."""
        ...

    def close(self) -> None:
        """Commit and end."""
        ...


class FactoryError(ValueError):
    """What `--in-process` names cannot be used."""


def open_in_process(name: str, options: Mapping[str, str]) -> InProcess:
    """Make the server that `module:factory` names; raises FactoryError."""
    module_name, _, factory_name = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise FactoryError(f"--in-process {name}: expected MODULE:FACTORY ({error})") from None
    server: InProcess = factory(options)
    return server


class InProcessBridge:
    """Straight into the server's ingest: messages are handed over when somebody waits for an answer, many at once."""

    settling_s: Final = 0.0
    connected: Final = True

    def __init__(self, server: InProcess) -> None:
        self._server = server
        self._published: list[tuple[str, bytes]] = []
        self._arrived: deque[tuple[str, bytes]] = deque()
        self.told: int = 0

    def publish(self, dispenser_id: str, channel: Channel, payload: bytes, qos: int, retain: bool) -> None:  # noqa: ARG002 - a port
        self._published.append((topic(dispenser_id, channel), payload))

    def take(self, timeout_s: float) -> Arrived | None:  # noqa: ARG002 - a port
        if not self._arrived:
            self.settle()
        if not self._arrived:
            return None
        name, payload = self._arrived.popleft()
        where = parse(name)
        return where.dispenser_id, where.channel, payload

    def settle(self) -> None:
        published, self._published = self._published, []
        self._arrived.extend(self._server.take(published))
