"""The embedded servers start, keep what they promised through kill -9, allow no more than they should, and leave nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import psycopg
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from fleet_server.embedded import BrokerAddress, EmbeddedBroker, EmbeddedError, EmbeddedPostgres
from tests.benchmarks.bare_mqtt import BareClient
from tests.conftest import scratch_directory


@pytest.fixture
def directory() -> Iterator[Path]:
    with scratch_directory() as path:
        yield path


@pytest.fixture
def postgres(directory: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(directory / "postgres", durable=False)
    yield server
    server.remove()


def _wait_until(condition: Callable[[], bool], delay_s_max: float = 20) -> None:
    deadline = time.monotonic() + delay_s_max
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and ") Z " not in Path(f"/proc/{pid}/stat").read_text()


class Client:
    """A paho client that waits for each answer."""

    def __init__(self, address: BrokerAddress, user: str, client_id: str, password: str | None = None) -> None:
        self.received: list[tuple[str, bytes]] = []
        self.refused = False
        self._answered = threading.Event()
        self._paho = mqtt.Client(CallbackAPIVersion.VERSION2, client_id, clean_session=True, protocol=mqtt.MQTTv311)
        self._paho.username_pw_set(user, password or address.users[user])
        self._paho.on_connect = self._on_connect
        self._paho.on_subscribe = lambda *_: self._answered.set()
        self._paho.on_message = lambda _c, _u, message: self.received.append((message.topic, bytes(message.payload)))
        self._paho.connect(address.host, address.port)
        self._paho.loop_start()
        assert self._answered.wait(10), "no CONNACK"

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.refused = reason.is_failure
        self._answered.set()

    def subscribe(self, topic: str) -> None:
        self._answered.clear()
        self._paho.subscribe(topic, qos=1)
        assert self._answered.wait(10), "no SUBACK"

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self._paho.publish(topic, payload, qos=1, retain=retain).wait_for_publish(10)

    def close(self) -> None:
        self._paho.disconnect()
        self._paho.loop_stop()


def test_postgres_starts_and_a_second_start_finds_its_data_port_and_password(postgres: EmbeddedPostgres) -> None:
    first = postgres.start()
    with psycopg.connect(first.url) as connection:
        connection.execute("CREATE TABLE t AS SELECT 42 AS answer")
    postgres.stop()
    second = postgres.start()
    assert second == first
    with psycopg.connect(second.url) as connection:
        assert connection.execute("SELECT answer FROM t").fetchall() == [(42,)]


def test_postgres_killed_with_minus_9_keeps_a_committed_row(directory: Path) -> None:
    postgres = EmbeddedPostgres(directory / "postgres")
    with psycopg.connect(postgres.start().url, autocommit=True) as connection:
        connection.execute("CREATE TABLE t AS SELECT 42 AS answer")
        assert postgres.pid
        os.kill(postgres.pid, signal.SIGKILL)
    postgres.stop()
    with psycopg.connect(postgres.start().url) as connection:
        assert connection.execute("SELECT answer FROM t").fetchall() == [(42,)]
    postgres.remove()


def test_servers_end_with_a_launcher_that_is_killed_and_start_again(directory: Path) -> None:
    program = f"""
        import sys, time
        from pathlib import Path
        from fleet_server.embedded import EmbeddedBroker, EmbeddedPostgres
        postgres, broker = EmbeddedPostgres(Path({str(directory / "p")!r})), EmbeddedBroker(Path({str(directory / "b")!r}))
        postgres.start(); broker.start()
        print(postgres.pid, broker.pid, flush=True)
        time.sleep(100)
    """
    launcher = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout
    pids = [int(word) for word in launcher.stdout.readline().split()]
    ports = [(directory / name / "port").read_text() for name in "pb"]
    launcher.kill()
    launcher.wait()
    # At once: what is left of the first run has to be waited for, not stumbled over.
    postgres, broker = EmbeddedPostgres(directory / "p"), EmbeddedBroker(directory / "b")
    with psycopg.connect(postgres.start().url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    broker.start()
    assert ports == [(directory / name / "port").read_text() for name in "pb"]
    assert not [pid for pid in pids if _is_alive(pid)]
    broker.stop()
    postgres.remove()


def test_stop_leaves_no_process(postgres: EmbeddedPostgres, directory: Path) -> None:
    broker = EmbeddedBroker(directory / "broker")
    url = postgres.start().url
    broker.start()
    with psycopg.connect(url):
        pids = [server.pid for server in (postgres, broker) if server.pid]
        postgres.stop()
        broker.stop()
    assert len(pids) == 2
    assert not [pid for pid in pids if _is_alive(pid)]
    assert not [
        link for link in Path("/proc").glob("[0-9]*/cwd") if link.exists() and str(directory) in str(link.readlink())
    ]


@pytest.mark.parametrize("kind", [EmbeddedPostgres, EmbeddedBroker])
def test_a_busy_port_is_named(kind: type[EmbeddedPostgres | EmbeddedBroker], directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(EmbeddedError, match=f"port: {port} is in use; expected a free TCP port"):
            kind(directory, port).start()


@pytest.mark.parametrize("kind", [EmbeddedPostgres, EmbeddedBroker])
def test_a_directory_serves_one_launcher_at_a_time(
    kind: type[EmbeddedPostgres | EmbeddedBroker], directory: Path
) -> None:
    first, second = kind(directory), kind(directory)
    first.start()
    with pytest.raises(EmbeddedError, match="expected one that no other process uses"):
        second.start()
    first.remove()


def test_a_damaged_data_directory_is_named(postgres: EmbeddedPostgres, directory: Path) -> None:
    postgres.start()
    postgres.stop()
    (directory / "postgres/cluster/data/PG_VERSION").unlink()
    with pytest.raises(EmbeddedError, match="has no PG_VERSION; expected an undamaged data directory"):
        postgres.start()


def test_a_damaged_control_file_is_told_with_postgres_own_words(postgres: EmbeddedPostgres, directory: Path) -> None:
    postgres.start()
    postgres.stop()
    (directory / "postgres/cluster/data/global/pg_control").write_bytes(b"")
    with pytest.raises(EmbeddedError, match="pg_control"):
        postgres.start()


def test_a_wrong_password_opens_nothing(postgres: EmbeddedPostgres, directory: Path) -> None:
    url = postgres.start().url
    password = (directory / "postgres/password").read_text()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url.replace(password, "wrong"))
    with EmbeddedBroker(directory / "broker") as address:
        client = Client(address, "server", "c", "wrong")
        assert client.refused
        client.close()


def test_secrets_are_readable_for_their_owner_only(postgres: EmbeddedPostgres, directory: Path) -> None:
    postgres.start()
    with EmbeddedBroker(directory / "broker"):
        secret_files = [*directory.glob("*/password*"), *directory.glob("*/nats.conf")]
    assert len(secret_files) == 5
    assert {path.stat().st_mode & 0o777 for path in secret_files} == {0o600}


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has places that PostgreSQL's user cannot reach")
def test_postgres_starts_as_root_below_a_closed_directory(directory: Path) -> None:
    directory.chmod(0o700)
    postgres = EmbeddedPostgres(directory / "postgres")
    first = postgres.start()
    home = (directory / "postgres/cluster").resolve()
    postgres.stop()
    assert postgres.start() == first
    assert Path(f"/proc/{postgres.pid}").stat().st_uid != 0
    postgres.remove()
    assert not home.exists()


@pytest.mark.parametrize(
    ("sender", "receiver", "leaf"),
    [("fleet", "server", leaf) for leaf in ("facts", "vitals", "status")]
    + [("server", "fleet", leaf) for leaf in ("ack", "desired", "orders", "books")],
)
def test_each_side_may_say_its_own_and_hear_the_others(
    broker: BrokerAddress, sender: str, receiver: str, leaf: str
) -> None:
    speaker, listener = Client(broker, sender, f"{leaf}-s"), Client(broker, receiver, f"{leaf}-r")
    listener.subscribe(f"fleet/v1/+/{leaf}")
    topic = f"fleet/v1/D1/{leaf}"
    speaker.publish(topic, b"hello")
    # What the machines of other tests have retained is heard as well.
    _wait_until(lambda: [message for message in listener.received if message[0] == topic] == [(topic, b"hello")])
    speaker.close()
    listener.close()


@pytest.mark.parametrize(
    ("forger", "witness", "leaf"),
    [("server", "server", "facts"), ("fleet", "fleet", "ack"), ("fleet", "fleet", "orders")],
)
def test_nobody_may_say_the_others(broker: BrokerAddress, forger: str, witness: str, leaf: str) -> None:
    """The witness is allowed to hear; a true message that follows shows that the forged one is not merely late."""
    truthful = Client(broker, "fleet" if forger == "server" else "server", "t")
    liar, listener = Client(broker, forger, "l"), Client(broker, witness, "w")
    listener.subscribe(f"fleet/v1/+/{leaf}")
    liar.publish(f"fleet/v1/D1/{leaf}", b"forged")
    time.sleep(0.2)
    truthful.publish(f"fleet/v1/D1/{leaf}", b"true")
    _wait_until(lambda: (f"fleet/v1/D1/{leaf}", b"true") in listener.received)
    assert listener.received == [(f"fleet/v1/D1/{leaf}", b"true")]
    for client in (truthful, liar, listener):
        client.close()


def test_nobody_may_overhear(broker: BrokerAddress) -> None:
    speaker, spy = Client(broker, "fleet", "speaker"), Client(broker, "fleet", "spy")
    for topic in ("fleet/v1/+/facts", "fleet/v1/#", "#"):
        spy.subscribe(topic)
    speaker.publish("fleet/v1/D1/facts", b"secret")
    time.sleep(0.3)
    assert spy.received == []
    speaker.close()
    spy.close()


def test_what_was_on_its_way_when_the_broker_was_killed_does_not_pile_up(directory: Path) -> None:
    broker = EmbeddedBroker(directory / "broker")
    address = broker.start()
    silent = BareClient(address, "server", "silent")
    silent.subscribe("fleet/v1/+/facts")
    speaker = Client(address, "fleet", "kiosk")
    for _ in range(50):
        speaker.publish("fleet/v1/D1/facts", b"never acknowledged")
    assert broker.pid
    os.kill(broker.pid, signal.SIGKILL)
    broker.stop()
    speaker.close()
    assert b"never acknowledged" in _kept(directory)
    broker.start()
    assert b"never acknowledged" not in _kept(directory)
    broker.stop()


def _kept(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*.blk"))


def test_what_is_retained_survives_kill_minus_9_and_a_clean_start_forgets_it(directory: Path) -> None:
    broker = EmbeddedBroker(directory / "broker")
    address = broker.start()
    server = Client(address, "server", "server")
    for number in range(50):
        server.publish(f"fleet/v1/D{number}/desired", str(number).encode(), retain=True)
    assert broker.pid
    os.kill(broker.pid, signal.SIGKILL)
    broker.stop()
    server.close()
    assert broker.start() == address
    again = Client(address, "fleet", "again")
    again.subscribe("fleet/v1/+/desired")
    _wait_until(lambda: len(again.received) >= 50)
    assert sorted(again.received) == sorted(
        (f"fleet/v1/D{number}/desired", str(number).encode()) for number in range(50)
    )
    again.close()
    broker.stop()
    broker.start(clean=True)
    fresh = Client(address, "fleet", "fresh")
    fresh.subscribe("fleet/v1/+/desired")
    server = Client(address, "server", "server")
    server.publish("fleet/v1/D1/desired", b"new")
    _wait_until(lambda: bool(fresh.received))
    assert fresh.received == [("fleet/v1/D1/desired", b"new")]
    server.close()
    fresh.close()
    broker.stop()


def test_the_fixture_gives_each_test_a_database_of_its_own(owner_url: str) -> None:
    with psycopg.connect(owner_url) as connection:
        connection.execute("CREATE TABLE only_here (id int)")


def test_the_fixture_drops_what_another_test_made(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT to_regclass('only_here')").fetchone() == (None,)


@pytest.mark.mosquitto
def test_the_fixture_runs_the_distributions_mosquitto(mosquitto: BrokerAddress) -> None:
    client = Client(mosquitto, "anybody", "c", "anything")
    client.subscribe("fleet/v1/+/facts")
    client.publish("fleet/v1/D1/facts", b"hello")
    _wait_until(lambda: client.received == [("fleet/v1/D1/facts", b"hello")])
    client.close()
