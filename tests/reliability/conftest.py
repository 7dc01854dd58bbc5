"""Fixtures of the fault matrix. RELIABILITY_SEED replays one seed; the long form (42 machines, 200 facts, 5 seeds) is marked `soak`."""

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import scratch_directory
from tests.installation import BrokerProcess, Installation
from tests.reliability.brokers import MosquittoBroker, ReachableBroker, mosquitto_binary
from tests.reliability.fleet import Fleet
from tests.reliability.network import Namespace, NoNamespaceError

LONG_SEEDS = (1, 2, 3, 4, 5)
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
    marks = [pytest.mark.soak, pytest.mark.timeout(3600)]
    long = [pytest.param(Scale(42, 200, seed, is_long=True), id=f"long-seed{seed}", marks=marks) for seed in seeds]
    metafunc.parametrize("scale", [short, *long])


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
    """One installation and one fleet at a time per kind of broker; a test that fails leaves nothing to the next."""

    def __init__(self, namespace: Namespace | None) -> None:
        self._namespace = namespace
        self._open: dict[str, tuple[int, Fleet, Any]] = {}
        self._number = 0

    def get(self, broker: str, machines: int) -> Fleet:
        """A healthy fleet."""
        opened = self._open.get(broker)
        if opened is None or opened[0] != machines:
            self.drop(broker)
            opened = self._open[broker] = self._make(broker, machines)
        opened[1].mend()
        return opened[1]

    def _make(self, kind: str, machines: int) -> tuple[int, Fleet, Any]:
        host = self._namespace.host if self._namespace else "127.0.0.1"
        context = scratch_directory()
        directory = context.__enter__()
        broker: BrokerProcess = (
            ReachableBroker(directory / "broker", host)
            if kind == "nats"
            else MosquittoBroker(directory / "broker", host)
        )
        installation = Installation(directory, broker)
        installation.await_ready()
        self._number += 1
        return machines, Fleet(installation, self._namespace, f"R{self._number}", machines), context

    def drop(self, kind: str) -> None:
        if opened := self._open.pop(kind, None):
            _, fleet, context = opened
            fleet.stop()
            fleet.installation.close()
            context.__exit__(None, None, None)

    def close(self) -> None:
        for kind in list(self._open):
            self.drop(kind)


@pytest.fixture(scope="session")
def fleets(namespace_or_reason: Namespace | str) -> Iterator[Fleets]:
    opened = Fleets(None if isinstance(namespace_or_reason, str) else namespace_or_reason)
    yield opened
    opened.close()


def _fleet(kind: str, fleets: Fleets, scale: Scale, node: pytest.Item) -> Iterator[Fleet]:
    yield fleets.get(kind, scale.machines)
    if node.stash.get(FAILED, True):
        fleets.drop(kind)


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
