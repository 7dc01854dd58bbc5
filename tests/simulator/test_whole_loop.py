"""The loop closes, and its books agree with what is physically there: agent, broker, ingest, ledger, plan, refill, agent."""

import random
from collections.abc import Iterator

import pytest

from tests.conftest import scratch_directory
from tests.installation import Installation, kill_again_and_again

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def installation() -> Iterator[Installation]:
    with scratch_directory() as directory:
        running = Installation(directory)
        yield running
        running.close()


def test_five_days_of_the_fleet_are_counted_to_the_last_pack(installation: Installation) -> None:
    summary = installation.played(days=5, seed_=11)
    assert summary["residual"] == 0
    assert summary["problems"] == 0
    assert summary["dispenses"] > 200
    assert summary["restocks"] >= 42
    report = installation.audited()
    assert report.differences == []
    assert report.movements > summary["dispenses"]
    # A second start goes on where the first ended: the machines' own state and the books are kept.
    later = installation.played(days=1, seed_=11)
    assert later["dispenses"] > summary["dispenses"]
    assert later["residual"] == 0
    assert installation.audited().differences == []


@pytest.mark.parametrize("seed", [21])
def test_kill_9_of_server_broker_and_database_in_the_middle_loses_and_doubles_nothing(
    installation: Installation, seed: int
) -> None:
    throw = random.Random(seed)
    simulator = installation.simulate(5, seed)
    killed = kill_again_and_again(installation, ["server", "broker", "postgres"], throw, simulator)
    summary = installation.finished(simulator)
    assert len(killed) >= 3, killed
    assert summary["residual"] == 0, f"seed {seed}, killed {killed}: {summary}"
    report = installation.audited()
    assert report.differences == [], f"seed {seed}, killed {killed}"
    assert summary["dispenses"] > 100
