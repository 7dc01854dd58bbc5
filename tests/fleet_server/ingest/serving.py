"""Ingest at work in this process, for tests that speak with it over a broker."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from fleet_server.clock import FixedClock
from fleet_server.database import Database
from fleet_server.embedded import BrokerAddress
from fleet_server.ingest import broker as door
from fleet_server.ingest.service import IngestService
from tests.fleet_server.fixtures import NOW

PATIENCE_S: Final = 100
"""Only hangs take so long."""


def address_of(broker: BrokerAddress) -> door.BrokerAddress:
    name = "server" if broker.users else None
    return door.BrokerAddress(broker.host, broker.port, tls=False, username=name, password=broker.users.get("server"))


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@contextmanager
def serving(url: str, broker: BrokerAddress) -> Iterator[IngestService]:
    database = Database(url)
    service = IngestService(database, FixedClock(NOW), address_of(broker))
    service.start()
    try:
        until(lambda: service.connected, "ingest is connected")
        yield service
    finally:
        service.stop()
        database.close()
