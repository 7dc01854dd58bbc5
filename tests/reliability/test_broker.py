"""B1 to B5: the broker is killed, wiped, full, silent, or drops what is too much for it."""

import time
from collections.abc import Callable

import pytest

from tests.benchmarks.bare_mqtt import BareClient
from tests.reliability.brokers import ReachableBroker
from tests.reliability.conftest import Scale
from tests.reliability.fleet import SLOTS, Fleet, go_on, pause

pytestmark = pytest.mark.slow


def embedded(fleet: Fleet) -> ReachableBroker:
    assert isinstance(fleet.installation.broker, ReachableBroker)
    return fleet.installation.broker


def killed_again_and_again(fleet: Fleet, scale: Scale, begin_again: Callable[[], object]) -> None:
    throw, ends_s = scale.throw(), time.monotonic() + scale.of(4, 60)
    while time.monotonic() < ends_s:
        next_s = time.monotonic() + throw.uniform(*scale.of((0.5, 1.5), (1, 3)))
        while time.monotonic() < next_s:
            fleet.work(throw, 2)
        fleet.installation.kill("broker")
        fleet.work(throw, 1)
        fleet.installation.broker.stop()
        begin_again()
    fleet.settle(scale.note)


def test_b1_embedded_broker_killed_every_few_seconds_without_persistence(fleet: Fleet, scale: Scale) -> None:
    broker = embedded(fleet)
    killed_again_and_again(fleet, scale, lambda: broker.start(clean=True))


def test_b1_mosquitto_killed_every_few_seconds_as_it_comes(mosquitto_fleet: Fleet, scale: Scale) -> None:
    killed_again_and_again(mosquitto_fleet, scale, mosquitto_fleet.installation.broker.start)


def test_b2_server_silent_while_mosquitto_drops_what_exceeds_its_queue(mosquitto_fleet: Fleet, scale: Scale) -> None:
    fleet, throw = mosquitto_fleet, scale.throw()
    server = fleet.installation.server.pid
    pause(server)
    try:
        # A machine alone never fills a queue of 1,000: its window is four batches. So a crowd of strangers does.
        flood = BareClient(fleet.installation.address, "", "flood")
        flood.publish_all([(f"fleet/v1/NOBODY-{n}/facts", b"{}") for n in range(1_500)])
        facts = scale.of(scale.facts, 5_000 // len(fleet.machines))
        for machine in fleet.machines:
            machine.ask_often([throw.choice(SLOTS) for _ in range(facts)])
        fleet.until(fleet.idle, "visitors are served")
        assert dropped(flood) > 0, "the broker dropped nothing"
        flood.close()
    finally:
        go_on(server)
    fleet.settle(scale.note)


def dropped(client: BareClient) -> int:
    """How many messages Mosquitto says that it dropped; it says so every ten seconds."""
    client.subscribe("$SYS/broker/publish/messages/dropped")
    ends_s = time.monotonic() + 30
    latest = 0
    while time.monotonic() < ends_s and not latest:
        if client.ready(1):
            latest = max([latest, *map(int, client.receive())])
    return latest


def test_b3_a_wiped_broker_costs_a_reconnection_and_a_new_card_still_learns_its_planogram(
    fleet: Fleet, scale: Scale
) -> None:
    throw = scale.throw()
    fleet.work(throw, scale.facts)
    fleet.installation.kill("broker")
    fleet.installation.broker.stop()
    embedded(fleet).start(clean=True)
    fleet.settle(scale.note)
    # What the broker retained is gone: a machine with a new card has nobody to learn from but the server.
    renewed = fleet.machines[0]
    renewed.kill()
    for path in renewed.directory.glob("outbox.*"):
        path.unlink()
    before = renewed.packs()
    renewed.start()

    def gives_again() -> bool:
        renewed.ask(throw.choice(SLOTS))
        time.sleep(0.3)
        return renewed.packs() < before

    fleet.until(gives_again, "the renewed machine gives a pack", 30)
    fleet.settle(scale.note)


def test_b5_a_stopped_broker_leaves_machines_unaffected(fleet: Fleet, scale: Scale) -> None:
    throw = scale.throw()
    broker = fleet.installation.broker.pid
    assert broker
    pause(broker)
    try:
        ends_s = time.monotonic() + scale.of(5, 60)
        given = 0
        while time.monotonic() < ends_s:
            given += fleet.work(throw, max(1, scale.facts // 4))
            time.sleep(scale.of(0.5, 5))
        fleet.until(fleet.idle, "visitors are served")
        assert given > 0, scale.note
    finally:
        go_on(broker)
    fleet.settle(scale.note)


@pytest.mark.root
def test_b5_a_broker_with_a_full_disk_leaves_machines_unaffected(fleet: Fleet, scale: Scale) -> None:
    throw, broker = scale.throw(), embedded(fleet)
    if not broker.has_own_disk:
        pytest.skip("no tmpfs can be mounted here")
    ballast = broker.fill_disk()
    try:
        given = fleet.work(throw, scale.facts)
        fleet.until(fleet.idle, "visitors are served")
        assert given > 0, scale.note
    finally:
        ballast.unlink()
    # NATS does not write to a stream again that it once could not write to: an operator frees the disk and restarts it.
    fleet.installation.restart("broker")
    fleet.settle(scale.note)
