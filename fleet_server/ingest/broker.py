"""The one door to the broker: a reader of our own, which hands over what one read brings and acknowledges by the transaction.

A general client spends more on a message than all the rest of ingest together (docs/decisions). What ingest needs of MQTT is
little: clean sessions, QoS 1 both ways, keep-alive, TLS, and another connection after one that is gone.
"""

import contextlib
import queue
import secrets
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from time import monotonic
from typing import Final, NamedTuple
from urllib.parse import urlsplit
from zlib import crc32

import structlog

from fleet_server.errors import InputError
from fleet_server.ingest import packets
from fleet_server.ingest.packets import Control, PacketError, Publish
from protocol.topics import FROM_DISPENSER, Channel, every

KEEPALIVE_S: Final = 30
SILENCE_S_MAX: Final = KEEPALIVE_S * 3 / 2
"""A broker that answers no ping for so long is gone."""
CONNECT_DELAY_S_MAX: Final = 10
SEND_DELAY_S_MAX: Final = 10
"""A broker that takes nothing for so long is gone as well."""
RECONNECT_DELAYS_S: Final = (1, 2, 5)
READ_BYTES_MAX: Final = 262_144

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where the broker listens; `mqtts` asks for TLS with the system's authorities or `ca_file`."""

    host: str
    port: int
    tls: bool
    username: str | None = None
    password: str | None = None
    ca_file: str | None = None


def parse_address(
    url: str, username: str | None = None, password: str | None = None, ca_file: str | None = None
) -> BrokerAddress:
    """Read `mqtt://host:port` or `mqtts://host:port`; raises InputError."""
    parts = urlsplit(url)
    if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname:
        # A password may stand in the address: it is not repeated.
        raise InputError(
            "broker_url", f"{parts.scheme}://{parts.hostname or ''}", "mqtt://HOST:PORT or mqtts://HOST:PORT"
        )
    tls = parts.scheme == "mqtts"
    port = parts.port or (8883 if tls else 1883)
    return BrokerAddress(parts.hostname, port, tls, username or parts.username, password or parts.password, ca_file)


class Delivery(NamedTuple):
    """A message that the broker keeps until `Broker.done` is called with it. `connection` is the one it came on."""

    topic: str
    payload: bytes
    mid: int
    connection: "Connection"


@lru_cache(100_000)
def lane_of(topic: str) -> int:
    """Return a number that tells the lane of a topic: all of one machine go into the same, in the order of their arrival."""
    return crc32(topic.rpartition("/")[0].encode())


class BrokerGoneError(ConnectionError):
    """The broker closed the connection, refused us, or is silent."""


class Connection:
    """One connection. One thread reads; any may send."""

    def __init__(self, address: BrokerAddress) -> None:
        self._socket = _open(address)
        # A TLS socket must not be read and written at once; waiting happens outside of this lock.
        self._use = threading.Lock()
        self._sending = threading.Lock()
        self._reader = packets.Reader()
        self._mid = 0
        self._sent_s = self._heard_s = self._pinged_s = monotonic()

    def read(self, wait_s: float) -> list[Publish | Control]:
        """Return the packets that have come within `wait_s`, and keep the connection alive; raises OSError, PacketError."""
        if not self._has_data(wait_s):
            if monotonic() - self._heard_s > SILENCE_S_MAX:
                raise BrokerGoneError(f"silent for {SILENCE_S_MAX:.0f} s")
            self._ping()
            return []
        try:
            with self._use:
                data = self._socket.recv(READ_BYTES_MAX)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return []
        if not data:
            raise BrokerGoneError("closed by the broker")
        self.keep_alive()
        return self._reader.feed(data)

    def _has_data(self, wait_s: float) -> bool:
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            return True
        return bool(select.select([self._socket], [], [], wait_s)[0])

    def keep_alive(self) -> None:
        """Note that the silence until now was not the broker's, and ping when we were silent ourselves."""
        self._heard_s = monotonic()
        self._ping()

    def _ping(self) -> None:
        now_s = monotonic()
        silent = now_s - min(self._sent_s, self._heard_s) > KEEPALIVE_S / 2
        # Whoever is sending just now keeps the connection alive; waiting for them could wait for ever.
        if silent and now_s - self._pinged_s > KEEPALIVE_S / 2 and self._sending.acquire(blocking=False):
            self._pinged_s = now_s
            try:
                self._send(packets.PINGREQ)
            finally:
                self._sending.release()

    def publish(self, messages: Iterable[tuple[str, bytes, bool]]) -> None:
        """Send messages (topic, payload, retain) in one go; raises OSError."""
        with self._sending:
            data = bytearray()
            for topic, payload, retain in messages:
                self._mid = self._mid % 65_535 + 1
                data += packets.publish(topic, payload, self._mid, retain=retain)
            self._send(data)

    def send(self, data: bytes) -> None:
        """Send packets; raises OSError."""
        with self._sending:
            self._send(data)

    def _send(self, data: bytes | bytearray) -> None:
        if not data:
            return  # whoever has said nothing has not kept the connection alive
        rest = memoryview(data)
        until_s = monotonic() + SEND_DELAY_S_MAX
        while rest:
            try:
                with self._use:
                    rest = rest[self._socket.send(rest) :]
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                if monotonic() > until_s:
                    self._socket.shutdown(socket.SHUT_RDWR)  # in the middle of a packet there is no going on
                    raise BrokerGoneError(f"took nothing for {SEND_DELAY_S_MAX} s") from None
                select.select([], [self._socket], [], 0.1)
        self._sent_s = monotonic()

    def close(self) -> None:
        """Say goodbye if the socket takes it at once, and close."""
        with contextlib.suppress(OSError):
            with self._use:
                self._socket.send(packets.DISCONNECT)
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _open(address: BrokerAddress) -> socket.socket:
    opened = socket.create_connection((address.host, address.port), timeout=CONNECT_DELAY_S_MAX)
    # Nagle's algorithm together with delayed acknowledgements costs 40 ms a message.
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if address.tls:
        context = ssl.create_default_context(cafile=address.ca_file)
        opened = context.wrap_socket(opened, server_hostname=address.host)
    opened.setblocking(False)
    return opened


class Broker:
    """Keeps a connection and deals what it brings out to bounded queues, one for each lane, a list for each read.

    While a queue is full the socket is not read, and the broker holds back. Sessions are clean: machines send again what
    the server has not acknowledged, so a broker need not keep anything for us. `share` names a group of workers among whom the
    broker deals out the messages, where it can.

    A broker has one window for all that it sends ahead on a connection, and what finds no room there it drops, or sends half a
    minute later: channels that must not wait for each other need connections of their own.
    """

    def __init__(
        self,
        address: BrokerAddress,
        lanes: "Sequence[queue.Queue[list[Delivery]]]",
        on_up: Callable[[], None],
        share: str | None = None,
        channels: Sequence[Channel] = FROM_DISPENSER,
    ) -> None:
        self._address, self._lanes, self._on_up, self._share = address, lanes, on_up, share
        self._channels = channels
        self._client_id = f"ingest-{secrets.token_hex(8)}"
        self._connection: Connection | None = None
        self._connections = 0
        self._thread = threading.Thread(target=self._run, name="broker", daemon=True)
        self._stopping = threading.Event()
        self.connected = False

    def start(self) -> None:
        """Connect in the background and stay connected."""
        self._thread.start()

    def stop(self) -> None:
        """Disconnect."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def publish(self, messages: Iterable[tuple[str, bytes, bool]]) -> None:
        """Send messages (topic, payload, retain), or drop them: whatever is lost here is asked for again by a machine or a row."""
        connection = self._connection
        if connection is not None and self.connected:
            with contextlib.suppress(OSError):  # the reading thread sees it too, and connects again
                connection.publish(messages)

    def done(self, deliveries: Sequence[Delivery]) -> None:
        """Let the broker forget messages: they are committed. Those of another connection are not its, or long forgotten."""
        connection = self._connection
        if connection is not None:
            data = packets.pubacks(d.mid for d in deliveries if d.mid and d.connection is connection)
            with contextlib.suppress(OSError):
                connection.send(data)

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                with self._connecting() as connection:
                    failures = 0
                    while not self._stopping.is_set():
                        self._hand_over(connection, connection.read(0.5))
            except (OSError, PacketError) as error:
                log.warning("broker connection lost", reason=str(error))
            except Exception:
                log.exception("broker connection failed")
            self._stopping.wait(RECONNECT_DELAYS_S[min(failures, len(RECONNECT_DELAYS_S) - 1)])
            failures += 1

    @contextlib.contextmanager
    def _connecting(self) -> Iterator[Connection]:
        self._connections += 1
        connection = Connection(self._address)
        try:
            hello = packets.connect(self._client_id, KEEPALIVE_S, self._address.username, self._address.password)
            answer = self._ask(connection, hello, packets.CONNACK)
            if answer[1:2] != b"\x00":
                raise BrokerGoneError(f"the broker refused the connection: code {answer[1:2].hex()}")
            self._connection = connection
            patterns = [self._pattern(channel) for channel in self._channels]
            given = self._ask(connection, packets.subscribe(1, patterns), packets.SUBACK)[2:]
            if packets.REFUSED in given:
                raise BrokerGoneError(f"the broker refused a subscription of {', '.join(patterns)}")
            self.connected = True
            log.info("broker connected", host=self._address.host, port=self._address.port, channels=[*self._channels])
            try:
                self._on_up()
            except Exception:
                # What is to be done at a new connection may fail; the connection stands all the same.
                log.exception("on_up failed")
            yield connection
        finally:
            self.connected = False
            self._connection = None
            connection.close()

    def _pattern(self, channel: Channel) -> str:
        """Every worker hears the status of every machine: a shared subscription is not given what is retained."""
        if self._share is None or channel is Channel.STATUS:
            return every(channel)
        return f"$share/{self._share}/{every(channel)}"

    def _ask(self, connection: Connection, question: bytes, kind: int) -> bytes:
        """Send a question and wait for its answer; messages that come before it are handed over."""
        connection.send(question)
        until_s = monotonic() + CONNECT_DELAY_S_MAX
        while monotonic() < until_s and not self._stopping.is_set():
            came = connection.read(0.5)
            self._hand_over(connection, came)
            for packet in came:
                if isinstance(packet, Control) and packet.kind == kind:
                    return packet.body
        raise BrokerGoneError("no answer to CONNECT or SUBSCRIBE")

    def _hand_over(self, connection: Connection, came: Sequence[Publish | Control]) -> None:
        dealt: list[list[Delivery]] = [[] for _ in self._lanes]
        for packet in came:
            if isinstance(packet, Publish):
                dealt[lane_of(packet.topic) % len(dealt)].append(Delivery(*packet, connection))
        for lane, deliveries in zip(self._lanes, dealt, strict=True):
            while deliveries and not self._stopping.is_set():
                try:
                    lane.put(deliveries, timeout=0.5)
                except queue.Full:
                    connection.keep_alive()
                    continue
                break
