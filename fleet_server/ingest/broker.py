"""The one door to the broker: paho, with acknowledgement after commit and back-pressure by not reading the socket."""

import contextlib
import queue
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import structlog
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from fleet_server.errors import InputError
from protocol.topics import FROM_DISPENSER, every

KEEPALIVE_S: Final = 30
RECONNECT_DELAY_S_MAX: Final = 5

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


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that the broker keeps until `Broker.done` is called with it. `client` is the connection it came on."""

    topic: str
    payload: bytes
    mid: int
    qos: int
    retained: bool
    client: Client


def _without_delay(_client: Client, _data: Any, opened: Any) -> None:
    """Switch Nagle's algorithm off: together with delayed acknowledgements it costs 40 ms a message."""
    with contextlib.suppress(OSError):
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Broker:
    """A connection that hands messages to a bounded queue and acknowledges them when told.

    paho's network thread waits while the queue is full: the socket is not read, and the broker holds back. Sessions are
    clean: machines send again what the server has not acknowledged, so a broker need not keep anything for us.
    """

    def __init__(
        self, address: BrokerAddress, deliveries: "queue.Queue[Delivery | None]", on_up: Callable[[], None]
    ) -> None:
        self._address, self._deliveries, self._on_up = address, deliveries, on_up
        self._client = self._new_client()
        self._stopping = threading.Event()
        self.connected = False

    def _new_client(self) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2, clean_session=True, protocol=MQTTProtocolVersion.MQTTv311, manual_ack=True
        )
        client.username_pw_set(self._address.username, self._address.password)
        if self._address.tls:
            client.tls_set(ca_certs=self._address.ca_file)
        client.reconnect_delay_set(min_delay=1, max_delay=RECONNECT_DELAY_S_MAX)
        client.max_inflight_messages_set(1000)
        client.on_socket_open = _without_delay
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    def start(self) -> None:
        """Connect in the background and stay connected."""
        self._client.connect_async(self._address.host, self._address.port, KEEPALIVE_S)
        self._client.loop_start()

    def stop(self) -> None:
        """Disconnect first: `loop_stop` alone can hang on unacknowledged messages."""
        self._stopping.set()
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Send, or leave it to the next connection: whatever is lost here is asked for again by a machine or a row."""
        if self.connected:
            self._client.publish(topic, payload, qos=qos, retain=retain)

    def done(self, delivery: Delivery) -> None:
        """Let the broker forget a message: it is committed."""
        delivery.client.ack(delivery.mid, delivery.qos)

    # An exception in a callback would kill paho's thread while `is_connected()` stays true: nothing may escape.

    def _on_connect(
        self, client: Client, _data: Any, _flags: ConnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        try:
            if reason.is_failure:
                log.warning("broker refused the connection", reason=str(reason))
                return
            client.subscribe([(every(channel), 1) for channel in FROM_DISPENSER])
            self.connected = True
            log.info("broker connected", host=self._address.host, port=self._address.port)
            self._on_up()
        except Exception:
            log.exception("on_connect failed")

    def _on_disconnect(
        self, _client: Client, _data: Any, _flags: DisconnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        self.connected = False
        if not self._stopping.is_set():
            log.warning("broker connection lost", reason=str(reason))

    def _on_message(self, client: Client, _data: Any, message: MQTTMessage) -> None:
        try:
            delivery = Delivery(message.topic, bytes(message.payload), message.mid, message.qos, message.retain, client)
            while not self._stopping.is_set():
                try:
                    self._deliveries.put(delivery, timeout=0.5)
                except queue.Full:
                    continue
                return
        except Exception:
            log.exception("on_message failed")
