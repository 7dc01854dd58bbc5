"""X1 to X4: somebody speaks as another machine, takes its name, holds sockets open, or guesses passwords."""

import contextlib
import resource
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx2
import pytest
from sqlalchemy import text

from fleet_server.auth import service as auth
from fleet_server.clock import system_now
from fleet_server.database import Database
from fleet_server.embedded import BrokerAddress, BrokerUser, EmbeddedBroker
from tests.benchmarks.bare_mqtt import BareClient
from tests.conftest import scratch_directory
from tests.fleet_server.machine import Machine as Chain
from tests.installation import PASSWORD
from tests.reliability.brokers import MosquittoBroker, mosquitto_binary
from tests.reliability.conftest import Scale
from tests.reliability.fleet import Fleet
from tests.reliability.invariants import lines_of

pytestmark = pytest.mark.slow


def dead_letters(fleet: Fleet, words: str) -> int:
    database = Database(fleet.url)
    with database.begin() as connection:
        query = text("SELECT count(*) FROM dead_letters WHERE reason LIKE :words")
        found = int(connection.execute(query, {"words": f"%{words}%"}).scalar_one())
    database.close()
    return found


def test_x1_a_batch_of_one_machine_on_the_topic_of_another_is_refused_and_nothing_booked(
    fleet: Fleet, scale: Scale
) -> None:
    one, two, *_ = fleet.machines
    fleet.settle(scale.note)
    before = [len(list(lines_of(fleet.url, machine.id))) for machine in (one, two)]
    letters = dead_letters(fleet, "expected that of the topic")
    forger = BareClient(fleet.installation.address, "fleet", "forger")
    forger.publish_all([
        (f"fleet/v1/{one.id}/facts", Chain(two.id).vend().vend().batch()),
        (f"fleet/v1/{two.id}/facts", Chain(one.id).vend().vend().batch()),
    ])  # fmt: skip
    forger.close()
    fleet.until(lambda: dead_letters(fleet, "expected that of the topic") == letters + 2, "both are refused")
    assert [len(list(lines_of(fleet.url, machine.id))) for machine in (one, two)] == before
    fleet.settle(scale.note)


def own_topics(name: str) -> BrokerUser:
    """What a machine may do where each has a user of its own, as docs/operating.md asks of a production broker."""
    up, down = ("facts", "vitals", "status"), ("ack", "orders", "desired", "books")
    subjects = [tuple(f"fleet.v1.{name}.{leaf}" for leaf in leaves) for leaves in (up, down)]
    return BrokerUser(publish=subjects[0], subscribe=subjects[1])


@pytest.fixture
def guarded() -> Iterator[BrokerAddress]:
    """The embedded broker with a user for each machine."""
    server = BrokerUser(publish=("fleet.v1.*.ack",), subscribe=("fleet.v1.*.facts",))
    users = {"server": server, "HD-001": own_topics("HD-001"), "HD-002": own_topics("HD-002")}
    with scratch_directory() as directory, EmbeddedBroker(directory / "broker", users=users) as address:
        yield address


def heard(client: BareClient, seconds: float = 1.5) -> list[bytes]:
    """Everything that arrives within a while."""
    payloads: list[bytes] = []
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        if client.ready(0.1):
            payloads += client.receive()
    return payloads


def test_x1_a_broker_with_a_user_for_each_machine_passes_nothing_on_in_anothers_name(guarded: BrokerAddress) -> None:
    server = BareClient(guarded, "server", "server")
    server.subscribe("fleet/v1/+/facts")
    second = BareClient(guarded, "HD-002", "HD-002")
    second.publish_all([("fleet/v1/HD-002/facts", b"its own")])
    # A broker may drop it or the connection; what counts is what arrives.
    with contextlib.suppress(OSError):
        second.publish_all([("fleet/v1/HD-001/facts", b"in the name of another")])
    assert heard(server) == [b"its own"]
    server.close()
    second.close()


def test_x2_on_the_embedded_broker_a_stolen_client_id_disturbs_and_neither_reads_nor_books(
    fleet: Fleet, scale: Scale
) -> None:
    """A limit of the demo: NATS lets whoever may sign in take a client id over. It costs the machine a reconnection each time."""
    throw, machine = scale.throw(), fleet.machines[0]
    _, before = fleet.online()[machine.id]
    for _ in range(scale.of(3, 30)):
        # The machine comes back at once and takes its name again, perhaps before the intruder has its answer.
        with contextlib.suppress(ConnectionError):
            intruder = BareClient(fleet.installation.address, "fleet", machine.id)
            fleet.work(throw, 2)
            intruder.close()
    fleet.until(lambda: fleet.online()[machine.id][0] and fleet.online()[machine.id][1] > before, "it is back")
    fleet.settle(scale.note)


def test_x2_with_a_user_for_each_machine_a_stolen_client_id_gives_no_right_of_the_machine(
    guarded: BrokerAddress,
) -> None:
    server = BareClient(guarded, "server", "server")
    server.subscribe("fleet/v1/+/facts")
    BareClient(guarded, "HD-001", "HD-001")
    intruder = BareClient(guarded, "HD-002", "HD-001")
    with contextlib.suppress(OSError):
        intruder.publish_all([("fleet/v1/HD-001/facts", b"in the name of another")])
    assert heard(server) == []
    server.close()
    intruder.close()


def test_x2_mosquitto_that_takes_the_user_for_the_client_id_leaves_the_session_alone() -> None:
    if mosquitto_binary() is None:
        pytest.skip("mosquitto is not installed")
    users = {"HD-001": "first-password", "HD-004": "fourth-password"}
    with scratch_directory() as directory:
        passwords = directory / "passwords"
        passwords.write_text("".join(f"{name}:{password}\n" for name, password in users.items()))
        subprocess.run(["mosquitto_passwd", "-U", str(passwords)], check=True)
        passwords.chmod(0o644)
        access = directory / "access"
        access.write_text("pattern write fleet/v1/%u/facts\npattern read fleet/v1/%u/ack\n")
        access.chmod(0o644)
        lines = [f"password_file {passwords}", f"acl_file {access}", "use_username_as_clientid true"]
        broker = MosquittoBroker(directory / "broker", "127.0.0.1", "allow_anonymous false\n" + "\n".join(lines) + "\n")
        address = replace(broker.start(), users=users)
        try:
            first = BareClient(address, "HD-001", "HD-001")
            first.subscribe("fleet/v1/HD-001/ack")
            intruder = BareClient(address, "HD-004", "HD-001")
            intruder.publish_all([("fleet/v1/HD-001/facts", b"in the name of another")])
            # Had its session been taken over, this would find the connection closed.
            first.publish_all([("fleet/v1/HD-001/facts", b"its own")])
            first.close()
            intruder.close()
        finally:
            broker.stop()


def test_x3_three_thousand_idle_sockets_keep_no_machine_out(
    fleet: Fleet, scale: Scale, record_property: Callable[[str, object], None]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 8_000:
        pytest.skip(f"only {hard} open files are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sockets: list[socket.socket] = []
    machine = fleet.machines[0]
    try:
        sockets += [socket.create_connection(fleet.address, timeout=20) for _ in range(3_000)]
        machine.kill()
        _, before = fleet.online()[machine.id]
        machine.start()
        began_s = time.monotonic()
        fleet.until(lambda: fleet.online()[machine.id][0] and fleet.online()[machine.id][1] > before, "it connects", 30)
        record_property("measured", f"online {time.monotonic() - began_s:.1f} s after its process began")
        fleet.installation.await_ready()
    finally:
        for opened in sockets:
            opened.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    fleet.settle(scale.note)


@pytest.fixture
def attempts(fleet: Fleet) -> Iterator[None]:
    """Failed attempts count for a quarter of an hour, also against the address of this host: taken back afterwards."""
    yield
    database = Database(fleet.url)
    with database.begin() as connection:
        connection.execute(text("DELETE FROM sign_in_attempts"))
    database.close()


def tried(fleet: Fleet, password: str) -> int:
    body = {"user": "dispatcher", "password": password}
    return httpx2.post(f"{fleet.installation.url}/api/v1/sign-in", json=body, timeout=60).status_code


def test_x4_a_thousand_wrong_passwords_lock_the_account_and_its_address(
    fleet: Fleet, scale: Scale, attempts: None
) -> None:
    outcomes = Counter(tried(fleet, f"wrong-password-{n}") for n in range(scale.of(40, 1_000)))
    assert outcomes[401] == 8, outcomes
    assert outcomes.total() == outcomes[401] + outcomes[429], outcomes
    assert tried(fleet, PASSWORD) == 429


def test_x4_twenty_attempts_at_once_at_the_edge_of_the_limit_do_not_pass_it(
    fleet: Fleet, scale: Scale, attempts: None
) -> None:
    database = Database(fleet.url)
    with database.begin() as connection:
        for _ in range(7):
            auth.note_attempt(connection, "dispatcher", "127.0.0.1", system_now())
    database.close()
    assert tried(fleet, PASSWORD) == 200  # a right one is not counted
    with ThreadPoolExecutor(20) as crowd:
        outcomes = Counter(crowd.map(lambda n: tried(fleet, f"wrong-password-{n}"), range(20)))
    assert outcomes[401] <= 1, outcomes
    assert outcomes.total() == outcomes[401] + outcomes[429], outcomes
