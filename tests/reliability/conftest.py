"""Fixtures of the fault matrix. RELIABILITY_SEED replays one seed; the long form (42 machines, 200 facts, 5 seeds) is marked `soak`.

RELIABILITY_MACHINES is for the long form on a machine that has not the room for 42 processes.
"""

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fleet_server.embedded import BrokerAddress
from tests.conftest import scratch_directory
from tests.fleet_server.fixtures import database
from tests.installation import BrokerProcess, Installation
from tests.reliability.brokers import MosquittoBroker, ReachableBroker, mosquitto_binary
from tests.reliability.fleet import Fleet
from tests.reliability.network import Namespace, NoNamespaceError

__all__ = ["database"]
HERE = Path(__file__).parent
LONG_SEEDS = (1, 2, 3, 4, 5)
BROKER_DISK_BYTES = 64 * 2**20
FAILED = pytest.StashKey[bool]()


@dataclass(frozen=True)
class Scale:
    """How much of a scenario is played: `facts` are visitors to each machine."""

    machines: int
    facts: int
    seed: int
    is_long: bool

    def throw(self) -> random.Random:
        return random.Random(self.seed)

    def of(self, short: Any, long: Any) -> Any:
        return long if self.is_long else short

    @property
    def note(self) -> str:
        return f"seed {self.seed}: replay with RELIABILITY_SEED={self.seed}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "scale" not in metafunc.fixturenames:
        return
    replayed = os.environ.get("RELIABILITY_SEED")
    seeds = (int(replayed),) if replayed else LONG_SEEDS
    short = pytest.param(Scale(3, 20, seeds[0], is_long=False), id=f"short-seed{seeds[0]}")
    machines = int(os.environ.get("RELIABILITY_MACHINES", "42"))
    marks = [pytest.mark.soak, pytest.mark.timeout(3600)]
    long = [
        pytest.param(Scale(machines, 200, seed, is_long=True), id=f"long-seed{seed}", marks=marks) for seed in seeds
    ]
    metafunc.parametrize("scale", [short, *long])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The short form first, then Mosquitto's scenarios together: each other fleet and each move to another broker takes a while."""

    def kind(item: pytest.Item) -> tuple[bool, bool]:
        parameters = getattr(item, "callspec", None)
        scale = parameters.params.get("scale") if parameters else None
        return bool(scale and scale.is_long), "mosquitto_fleet" in getattr(item, "fixturenames", ())

    places = [place for place, item in enumerate(items) if item.path.parent == HERE]
    for place, item in zip(places, sorted((items[place] for place in places), key=kind), strict=True):
        items[place] = item


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or bool(report.failed)
    return report


@pytest.fixture
def fast_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: what dies there is a process, and waiting for a disk shows nothing more."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    directory = Path(tempfile.mkdtemp(prefix="dispenser-fleet-", dir=memory))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def namespace_or_reason() -> Iterator[Namespace | str]:
    try:
        namespace = Namespace()
    except NoNamespaceError as error:
        yield str(error)
        return
    yield namespace
    namespace.close()


@pytest.fixture
def namespace(namespace_or_reason: Namespace | str) -> Namespace:
    """The namespace that the machines live in; skips where there is none."""
    if isinstance(namespace_or_reason, str):
        pytest.skip(namespace_or_reason)
    return namespace_or_reason


class Fleets:
    """One installation and one fleet at a time, on either broker; a test that fails leaves nothing to the next."""

    def __init__(self, namespace: Namespace | None) -> None:
        self._namespace = namespace
        self._fleet: Fleet | None = None
        self._brokers: dict[str, tuple[BrokerProcess, BrokerAddress]] = {}
        self._scratch = ExitStack()
        self._kind = ""
        self._number = 0

    def get(self, kind: str, machines: int) -> Fleet:
        """A healthy fleet on this kind of broker."""
        if self._fleet is None or len(self._fleet.machines) != machines:
            self.drop()
            self._fleet = self._make(machines)
        if self._kind != kind:
            if kind not in self._brokers:
                mosquitto = MosquittoBroker(self._fleet.installation.directory / "mosquitto", self._host)
                self._brokers[kind] = mosquitto, mosquitto.start()
            self._fleet.use_broker(*self._brokers[kind])
            self._kind = kind
        self._fleet.mend()
        return self._fleet

    @property
    def _host(self) -> str:
        return self._namespace.host if self._namespace else "127.0.0.1"

    def _make(self, machines: int) -> Fleet:
        directory = self._scratch.enter_context(scratch_directory())
        broker = ReachableBroker(directory / "broker", self._host, disk_bytes=BROKER_DISK_BYTES)
        self._scratch.callback(broker.remove)
        installation = Installation(directory, broker)
        installation.await_ready()
        self._kind, self._brokers = "nats", {"nats": (broker, installation.address)}
        self._number += 1
        return Fleet(installation, self._namespace, f"R{self._number}", machines)

    def drop(self) -> None:
        """End everything; the next test begins anew."""
        if self._fleet is not None:
            self._fleet.stop()
            self._fleet.installation.close()
            for broker, _ in self._brokers.values():
                broker.stop()
        self._fleet, self._brokers, self._kind = None, {}, ""
        self._scratch.close()


@pytest.fixture(scope="session")
def fleets(namespace_or_reason: Namespace | str) -> Iterator[Fleets]:
    opened = Fleets(None if isinstance(namespace_or_reason, str) else namespace_or_reason)
    yield opened
    opened.drop()


def _fleet(kind: str, fleets: Fleets, scale: Scale, node: pytest.Item) -> Iterator[Fleet]:
    try:
        fleet = fleets.get(kind, scale.machines)
    except BaseException:
        fleets.drop()
        raise
    yield fleet
    if node.stash.get(FAILED, True):
        fleets.drop()


@pytest.fixture
def fleet(fleets: Fleets, scale: Scale, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """Machines on the embedded broker."""
    yield from _fleet("nats", fleets, scale, request.node)


@pytest.fixture
def mosquitto_fleet(fleets: Fleets, scale: Scale, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """Machines on Debian's Mosquitto in its default configuration, which persists nothing and drops what is too much."""
    if mosquitto_binary() is None:
        pytest.skip("mosquitto is not installed")
    yield from _fleet("mosquitto", fleets, scale, request.node)
