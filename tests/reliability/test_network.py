"""N1 to N8: the link between machines and server is cut, thinned, slowed, reset and swallowed. (N9 stands in test_crowd.py.)"""

import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.reliability.conftest import Scale
from tests.reliability.fleet import SLOTS, Fleet
from tests.reliability.network import Namespace

pytestmark = pytest.mark.slow
root = pytest.mark.root


def count(fleet: Fleet, metric: str) -> float:
    """A counter of the server's own metrics."""
    with urlopen(f"{fleet.installation.url}/metrics", timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{metric} "))


@root
def test_n1_a_cut_link_is_noticed_while_vending_goes_on_and_the_backlog_drains(
    namespace: Namespace, fleet: Fleet, scale: Scale
) -> None:
    throw = scale.throw()
    with namespace.dropping():
        given = fleet.work(throw, scale.facts)
        # Two keep-alives of 2 s; then a machine has given its connection up and tries to make another.
        port = fleet.address[1]
        fleet.until(lambda: not any(m.is_connected(port) for m in fleet.machines), "each machine notices", 20)
        given += fleet.work(throw, scale.facts)
        fleet.until(fleet.idle, "visitors are served without a link", 20)
        assert given > 0, scale.note
    fleet.settle(scale.note)


@root
def test_n2_a_link_that_flaps_loses_and_doubles_nothing(namespace: Namespace, fleet: Fleet, scale: Scale) -> None:
    throw = scale.throw()
    flaps = scale.of(5, 50)
    for _ in range(flaps):
        # Taken down, a send fails at once; dropped, it fails by silence.
        with throw.choice([namespace.down, namespace.dropping])():
            fleet.work(throw, scale.facts // 5)
            time.sleep(throw.uniform(*scale.of((0.1, 0.6), (1, 5))))
        fleet.work(throw, 1)
        time.sleep(throw.uniform(*scale.of((0.1, 0.6), (1, 5))))
    fleet.settle(scale.note)


def test_n3_lost_acks_bring_duplicates_and_none_is_booked_twice(fleet: Fleet, scale: Scale) -> None:
    throw = scale.throw()
    before = count(fleet, "fleet_ingest_duplicates_total")
    proxy = fleet.through_proxy(scale.seed)
    proxy.loses_ack = lambda: True
    fleet.work(throw, scale.facts)
    fleet.until(lambda: count(fleet, "fleet_ingest_duplicates_total") > before, "duplicates arrive")
    proxy.loses_ack = lambda: throw.random() < 0.7
    fleet.work(throw, scale.facts)
    proxy.loses_ack = lambda: False
    assert proxy.acks_lost > 0
    fleet.settle(scale.note)


@root
def test_n4_thirty_percent_of_all_packets_lost(namespace: Namespace, fleet: Fleet, scale: Scale) -> None:
    throw = scale.throw()
    ends_s = time.monotonic() + scale.of(5, 300)
    with namespace.dropping(0.3):
        while time.monotonic() < ends_s:
            fleet.work(throw, scale.facts // 4)
    fleet.settle(scale.note)


@root
def test_n6_at_8_kbit_s_a_backlog_delays_presence_by_a_minute_at_most(
    namespace: Namespace, fleet: Fleet, scale: Scale
) -> None:
    throw, behind = scale.throw(), scale.of(15, 1000)
    slow, *others = fleet.machines
    # Each machine has a link of its own; here the others would share it. These are the times that ship.
    for machine in others:
        machine.kill()
    fleet.direct(keepalive_s=30, ack_timeout_s=10, silence_s_max=50)
    slow.kill()
    slow.start()
    fleet.until(lambda: fleet.online()[slow.id][0], "the machine is online")
    session = fleet.online()[slow.id][1]
    with namespace.slow("8kbit"):
        with namespace.dropping():
            reached = slow.witness.stream().last_seq + behind
            slow.ask_often([throw.choice(SLOTS) for _ in range(behind)])
            fleet.until(lambda: slow.witness.stream().last_seq >= reached, "visitors are served")
            slow.kill()
        slow.start()
        fleet.until(lambda: fleet.online()[slow.id][0] and fleet.online()[slow.id][1] > session, "it is online", 60)
        limit_s = 120 + behind * 300 / 1000 * 3  # about 300 bytes a fact at 1,000 bytes a second, three times over
        fleet.until(lambda: slow.witness.stream().acked_through > 0 and drained(fleet), "the backlog drains", limit_s)
    fleet.direct()
    fleet.start()
    fleet.settle(scale.note)


def drained(fleet: Fleet) -> bool:
    own = fleet.machines[0].witness.stream()
    return own.acked_through == own.last_seq


def test_n7_connections_reset_and_cut_within_a_packet(fleet: Fleet, scale: Scale) -> None:
    throw = scale.throw()
    proxy = fleet.through_proxy(scale.seed)
    cuts, wanted = 0, scale.of(3, 100) * len(fleet.machines)
    while cuts < wanted:
        cuts += proxy.cut(reset=throw.random() < 0.5)
        fleet.work(throw, 2)
        fleet.until(lambda: proxy.accepted >= len(fleet.machines), "machines come back")
        time.sleep(throw.uniform(0.3, 1.0))
    fleet.settle(scale.note)


def test_n8_a_black_hole_leaves_no_hung_thread_and_the_watchdog_makes_a_fresh_connection(
    fleet: Fleet, scale: Scale
) -> None:
    throw = scale.throw()
    times = scale.of({}, {"keepalive_s": 30, "ack_timeout_s": 10, "silence_s_max": 50})
    proxy = fleet.through_proxy(scale.seed, **times)
    with proxy.swallowing():
        accepted = proxy.accepted
        fleet.work(throw, scale.facts)
        fleet.until(
            lambda: proxy.accepted >= accepted + len(fleet.machines), "each machine tries a fresh connection", 61
        )
        fleet.work(throw, scale.facts)
        fleet.until(fleet.idle, "visitors are served in a black hole", 20)
        threads = {m.id: len(list(Path(f"/proc/{m.process.pid}/task").iterdir())) for m in fleet.machines if m.process}
        assert all(number <= 6 for number in threads.values()), f"{scale.note}: {threads}"
    fleet.settle(scale.note)
