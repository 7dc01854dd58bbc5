"""The one door to the broker: many dispensers over one connection, in the name of the simulated fleet."""

import contextlib
import queue
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from protocol.topics import FROM_DISPENSER, FROM_SERVER, Channel, TopicError, every, parse, topic
from simulator.bridges import Arrived

KEEPALIVE_S: Final = 30


class BridgeError(RuntimeError):
    """The broker does not take us."""


def _without_delay(_client: Client, _data: Any, opened: Any) -> None:
    """Switch Nagle's algorithm off: it would cost 40 ms a message."""
    with contextlib.suppress(OSError):
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class MqttBridge:
    """Publishes for every dispenser, and hands what the server sends to a queue that the simulation empties.

    What machines publish while lanes run leaves when somebody waits for an answer: the server gets it in one go, and commits it in
    few transactions instead of one for each message.
    """

    settling_s: Final = 0.5

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port or 1883
        except ValueError:
            port = 0
        if parts.scheme != "mqtt" or not parts.hostname or not port:
            raise BridgeError(
                f"--broker {parts.scheme}://{parts.hostname or ''}: expected mqtt://USER:PASSWORD@HOST:PORT"
            )
        self._where = (parts.hostname, port)
        self._subscriptions = [every(channel) for channel in FROM_SERVER]
        self.arrived: queue.SimpleQueue[Arrived] = queue.SimpleQueue()
        self._published: list[tuple[str, bytes, int, bool]] = []
        self._up = threading.Event()
        self._refused: str | None = None
        self.told = 0
        self._client = Client(CallbackAPIVersion.VERSION2, clean_session=True)
        self._client.username_pw_set(parts.username, parts.password)
        self._client.reconnect_delay_set(min_delay=1, max_delay=2)
        self._client.max_inflight_messages_set(2_000)
        self._client.on_socket_open = _without_delay
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message

    def start(self, patience_s: float = 10) -> None:
        """Connect; raises BridgeError when no broker takes us in time."""
        self._client.connect_async(*self._where, KEEPALIVE_S)
        self._client.loop_start()
        if not self._up.wait(patience_s):
            self.stop()
            raise BridgeError(f"--broker {self._where[0]}:{self._where[1]}: {self._refused or 'nothing answers there'}")

    def stop(self) -> None:
        """Disconnect once everything is sent, or after a moment."""
        self.settle()
        deadline = time.monotonic() + 2
        while self._client.want_write() and time.monotonic() < deadline:
            time.sleep(0.01)
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, dispenser_id: str, channel: Channel, payload: bytes, qos: int, retain: bool) -> None:
        """Send one message, soon; without a connection it is lost, as it would be for a machine."""
        self._published.append((topic(dispenser_id, channel), payload, qos, retain))

    @property
    def connected(self) -> bool:
        """Whether the broker has us."""
        return self._up.is_set()

    def settle(self) -> None:
        """Send what was published."""
        published, self._published = self._published, []
        if self._up.is_set():
            for name, payload, qos, retain in published:
                self.told += qos > 0
                self._client.publish(name, payload, qos=qos, retain=retain)

    def take(self, timeout_s: float) -> Arrived | None:
        """Wait for one message, after sending what was published."""
        if self._published:
            self.settle()
        try:
            return self.arrived.get(timeout=timeout_s) if timeout_s > 0 else self.arrived.get_nowait()
        except queue.Empty:
            return None

    def _on_connect(self, client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._refused = f"the broker says {reason}"
            return
        client.subscribe([(pattern, 1) for pattern in self._subscriptions])

    def _on_subscribe(self, client: Client, _data: Any, _mid: Any, reasons: Any, _properties: Any) -> None:
        """A link on which no answer can come is none, but may be one next time: a broken one paho makes again by itself."""
        if not any(reason.is_failure for reason in reasons):
            self._up.set()
            return
        self._refused = f"the broker refused a subscription of {', '.join(self._subscriptions)}"
        opened: Any = client.socket()
        if opened is not None:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)

    def _on_disconnect(self, _client: Client, _data: Any, _flags: Any, _reason: Any, _properties: Any) -> None:
        self._up.clear()

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        try:
            where = parse(message.topic)
        except TopicError:
            return
        self.arrived.put((where.dispenser_id, where.channel, bytes(message.payload)))


@dataclass(frozen=True, slots=True)
class Heard:
    """One message of a dispenser, with the moment of its arrival on both clocks."""

    channel: Channel
    payload: bytes
    retained: bool
    at_s: float
    wall_ms: int


class Listener(MqttBridge):
    """The other end of the wire: hears what one dispenser says, and speaks to it as its server."""

    def __init__(self, url: str, dispenser_id: str) -> None:
        super().__init__(url)
        self._dispenser_id = dispenser_id
        self._subscriptions = [topic(dispenser_id, channel) for channel in FROM_DISPENSER]
        self._heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()

    def publish(self, dispenser_id: str, channel: Channel, payload: bytes, qos: int, retain: bool) -> None:
        """Send one message now."""
        super().publish(dispenser_id, channel, payload, qos, retain)
        self.settle()

    def hear(self, timeout_s: float) -> Heard | None:
        """Wait for one message."""
        try:
            return self._heard.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def ask_for_retained(self) -> None:
        """Subscribe to `status` again: the broker then repeats what it retains."""
        self._client.subscribe(topic(self._dispenser_id, Channel.STATUS), 1)

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        channel = parse(message.topic).channel
        wall_ms = int(time.time() * 1000)
        self._heard.put(Heard(channel, bytes(message.payload), message.retain, time.monotonic(), wall_ms))
