"""The reader of our own against real brokers: what a general client would do for us, it does itself."""

import os
import queue
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from fleet_server.embedded import BrokerAddress as Embedded
from fleet_server.embedded import EmbeddedBroker
from fleet_server.ingest import broker as door
from fleet_server.ingest.broker import Broker, BrokerAddress, Delivery
from tests.benchmarks.bare_mqtt import BareClient
from tests.conftest import free_port, scratch_directory

Deliveries = queue.Queue[list[Delivery]]
PATIENCE_S = 60


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def server_of(address: Embedded) -> BrokerAddress:
    return BrokerAddress(
        address.host, address.port, tls=False, username="server", password=address.users.get("server", "x")
    )


@contextmanager
def reading(
    address: BrokerAddress, deliveries: Deliveries, on_up: Callable[[], None] = lambda: None
) -> Iterator[Broker]:
    running = Broker(address, [deliveries], on_up)
    running.start()
    try:
        yield running
    finally:
        running.stop()


def sent(address: Embedded, *payloads: bytes) -> None:
    client = BareClient(address, "fleet", "broker-test")
    client.publish_all([("fleet/v1/HD-001/facts", payload) for payload in payloads])
    client.close()


def received(deliveries: Deliveries, number: int) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < number:
        # What other tests left with the broker is retained.
        found += [
            delivery.payload for delivery in deliveries.get(timeout=PATIENCE_S) if delivery.topic.endswith("/facts")
        ]
    return found


def test_a_refused_password_is_no_connection_and_is_tried_again(broker: Embedded) -> None:
    wrong = BrokerAddress(broker.host, broker.port, tls=False, username="server", password="guessed")
    with reading(wrong, queue.Queue(4)) as running:
        until(lambda: running._connections >= 2, "a second attempt")
        assert not running.connected


def test_an_exception_in_what_is_done_at_a_new_connection_leaves_it_standing(broker: Embedded) -> None:
    def on_up() -> None:
        raise RuntimeError("a callback that fails")

    deliveries: Deliveries = queue.Queue(4)
    with reading(server_of(broker), deliveries, on_up) as running:
        until(lambda: running.connected, "connected")
        sent(broker, b"one")
        assert received(deliveries, 1) == [b"one"]
        assert running._connections == 1


def test_a_broker_that_is_killed_is_found_again_and_speaks_on() -> None:
    deliveries: Deliveries = queue.Queue(4)
    with scratch_directory() as directory:
        embedded = EmbeddedBroker(directory / "broker")
        address = embedded.start()
        with reading(server_of(address), deliveries) as running:
            until(lambda: running.connected, "connected")
            assert embedded.pid
            os.kill(embedded.pid, signal.SIGKILL)
            until(lambda: not running.connected, "the loss is noticed")
            embedded.stop()
            embedded.start()
            until(lambda: running.connected, "connected again")
            sent(address, b"again")
            assert received(deliveries, 1) == [b"again"]
        embedded.stop()


def test_a_broker_that_falls_silent_is_given_up_and_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "KEEPALIVE_S", 2)
    monkeypatch.setattr(door, "SILENCE_S_MAX", 3)
    with scratch_directory() as directory:
        embedded = EmbeddedBroker(directory / "broker")
        with reading(server_of(embedded.start()), queue.Queue(4)) as running:
            until(lambda: running.connected, "connected")
            assert embedded.pid
            os.kill(embedded.pid, signal.SIGSTOP)
            try:
                until(lambda: not running.connected, "the silence is noticed")
            finally:
                os.kill(embedded.pid, signal.SIGCONT)
            until(lambda: running.connected, "connected again")
        embedded.stop()


def test_an_idle_connection_is_kept_alive_even_while_nothing_is_read(
    broker: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a keep-alive of one second the broker hangs up after a second and a half without a word from us."""
    monkeypatch.setattr(door, "KEEPALIVE_S", 1)
    deliveries: Deliveries = queue.Queue(1)
    with reading(server_of(broker), deliveries) as running:
        until(lambda: running.connected, "connected")
        sent(broker, b"fills the queue")
        until(deliveries.full, "the queue is full")
        sent(broker, b"waits")
        time.sleep(3.5)
        assert running.connected
        assert received(deliveries, 2) == [b"fills the queue", b"waits"]
        assert running._connections == 1


def test_to_have_nothing_to_say_is_not_to_have_spoken(broker: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ingest tells each connection of every commit; what brings readings alone has nothing to answer to it."""
    monkeypatch.setattr(door, "KEEPALIVE_S", 1)
    deliveries: Deliveries = queue.Queue(64)
    with reading(server_of(broker), deliveries) as running:
        until(lambda: running.connected, "connected")
        for number in range(18):
            sent(broker, b"%d" % number)
            running.done([])
            running.publish([])
            time.sleep(0.2)
        assert len(received(deliveries, 18)) == 18
        assert running._connections == 1


def test_a_full_queue_holds_the_broker_back_and_nothing_is_lost(broker: Embedded) -> None:
    deliveries: Deliveries = queue.Queue(1)
    payloads = [b"%06d" % number + b"x" * 10_000 for number in range(1_000)]
    with reading(server_of(broker), deliveries) as running:
        until(lambda: running.connected, "connected")
        sent(broker, *payloads)
        until(deliveries.full, "the queue is full")
        assert received(deliveries, len(payloads)) == payloads


def test_whoever_accepts_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "CONNECT_DELAY_S_MAX", 1)
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    accepted.append(listener.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        address = BrokerAddress("127.0.0.1", listener.getsockname()[1], tls=False)
        with reading(address, queue.Queue(4)) as running:
            until(lambda: len(accepted) >= 2, "a second attempt")
            assert not running.connected
        listener.shutdown(socket.SHUT_RDWR)
    for connection in accepted:
        connection.close()


@pytest.mark.mosquitto
def test_tls_is_spoken_and_a_stranger_s_certificate_refused() -> None:
    mosquitto = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if mosquitto is None or shutil.which("openssl") is None:
        pytest.skip("mosquitto or openssl is not installed")
    port = free_port()
    with scratch_directory() as directory:
        for name in ("server", "stranger"):
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                 "-keyout", directory / f"{name}.key", "-out", directory / f"{name}.pem", "-days", "2",
                 "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
                check=True, capture_output=True,
            )  # fmt: skip
            (directory / f"{name}.key").chmod(0o644)
        configuration = directory / "mosquitto.conf"
        configuration.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\ncertfile {directory}/server.pem\nkeyfile {directory}/server.key\n"
        )
        process = subprocess.Popen(
            [mosquitto, "-c", configuration], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            deliveries: Deliveries = queue.Queue(4)
            trusted = BrokerAddress("127.0.0.1", port, tls=True, ca_file=str(directory / "server.pem"))
            with reading(trusted, deliveries) as running:
                until(lambda: running.connected, "connected")
                running.publish([("fleet/v1/HD-001/facts", b"x" * 200_000, False)] * 20)
                assert sum(map(len, received(deliveries, 20))) == 20 * 65_537
            stranger = BrokerAddress("127.0.0.1", port, tls=True, ca_file=str(directory / "stranger.pem"))
            with reading(stranger, queue.Queue(4)) as running:
                until(lambda: running._connections >= 2, "a second attempt")
                assert not running.connected
        finally:
            process.terminate()
            process.wait(10)
