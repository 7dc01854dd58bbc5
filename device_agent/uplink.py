"""The one door to the broker: paho, with a fresh client object for every connection."""

import contextlib
import queue
import socket
import ssl
import threading
from dataclasses import dataclass
from typing import Any, Final

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from device_agent.events import Event, LinkDown, LinkUp, MessageArrived
from protocol.topics import FROM_SERVER, Channel, TopicError, parse, topic

KEEPALIVE_S: Final = 30
RECONNECT_S_MAX: Final = 15
"""Between two attempts, jitter aside: a machine is back, and has caught up, within 30 s of a healed link."""
CONNECT_TIMEOUT_S: Final = 10
LINGER_S: Final = 2.0
"""A connection that was given up may take this long to say goodbye."""


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """Where the broker is, and who we are to it."""

    host: str
    port: int = 8883
    username: str | None = None
    password: str | None = None
    tls: bool = True
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    keepalive_s: int = KEEPALIVE_S
    reconnect_s_max: int = RECONNECT_S_MAX


class Uplink:
    """One connection after another. What happens goes into the runtime's queue; a callback never raises.

    Nothing here makes the runtime wait: behind a black hole a client may need ten seconds to end, and somebody stands at
    the machine. A client connects once: when to try again is the runtime's to say, because only it has jitter.

    Sessions are clean: the server's answers can all be derived again, and orders are sent again in each session.
    """

    def __init__(self, dispenser_id: str, settings: BrokerSettings, events: "queue.Queue[Event]") -> None:
        self._dispenser_id, self._settings, self._events = dispenser_id, settings, events
        self._client: Client | None = None
        self.opened = False
        """Whether the last attempt reached a broker, which may have kept its last will."""

    def connect(self, will: bytes) -> None:
        """Throw the former client away and begin a new connection in the background; LinkUp follows when it stands."""
        self.close()
        client = Client(
            CallbackAPIVersion.VERSION2, client_id=self._dispenser_id, clean_session=True, reconnect_on_failure=False
        )
        client.username_pw_set(self._settings.username or self._dispenser_id, self._settings.password)
        if self._settings.tls:
            client.tls_set(
                ca_certs=self._settings.ca_file,
                certfile=self._settings.certificate_file,
                keyfile=self._settings.key_file,
                tls_version=ssl.PROTOCOL_TLS_CLIENT,
            )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.will_set(topic(self._dispenser_id, Channel.STATUS), will, qos=1, retain=True)
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        self._client, self.opened = client, False
        client.connect_async(self._settings.host, self._settings.port, self._settings.keepalive_s)
        client.loop_start()

    def publish(self, channel: Channel, payload: bytes, qos: int, *, retain: bool) -> None:
        """Hand a message over; if it is lost, the agent's own timeouts send it again."""
        if self._client is not None:
            self._client.publish(topic(self._dispenser_id, channel), payload, qos=qos, retain=retain)

    def close(self, wait_s: float = 0.0) -> None:
        """Give the connection up; it ends in the background, and `wait_s` is how long to wait for that."""
        client, self._client = self._client, None
        if client is not None:
            ending = threading.Thread(target=_end, args=(client,), daemon=True)
            ending.start()
            ending.join(wait_s)

    def _tell(self, client: Client, event: Event) -> None:
        """Hand an event to the runtime; a client that was thrown away has nothing to say.

        A full queue stops the reading of the socket: a lost LinkDown would leave the runtime waiting for ever.
        """
        while client is self._client:
            with contextlib.suppress(queue.Full):
                self._events.put(event, timeout=0.5)
                return

    def _on_socket_open(self, client: Client, _data: Any, opened: Any) -> None:
        """A client that was given up while it was connecting must not take the session of its successor over."""
        with contextlib.suppress(OSError):
            if client is self._client:
                self.opened = True
                # Nagle's algorithm would cost 40 ms a message.
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            else:
                opened.shutdown(socket.SHUT_RDWR)

    def _on_connect(self, client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._tell(client, LinkDown())
            return
        client.subscribe([(topic(self._dispenser_id, channel), 1) for channel in FROM_SERVER])

    def _on_subscribe(self, client: Client, _data: Any, _mid: Any, reasons: Any, _properties: Any) -> None:
        """A link on which no answer can come is none: a broker that is full or busy may take the subscription next time."""
        if any(reason.is_failure for reason in reasons):
            client.disconnect()
        else:
            self._tell(client, LinkUp())

    def _on_connect_fail(self, client: Client, _data: Any) -> None:
        client.loop_stop()  # paho would try again by itself
        self._tell(client, LinkDown())

    def _on_disconnect(self, client: Client, _data: Any, _flags: Any, _reason: Any, _properties: Any) -> None:
        self._tell(client, LinkDown())

    def _on_message(self, client: Client, _data: Any, message: MQTTMessage) -> None:
        with contextlib.suppress(TopicError):
            where = parse(message.topic)
            self._tell(client, MessageArrived(where.channel, bytes(message.payload)))


def _end(client: Client) -> None:
    """Disconnect first: `loop_stop` alone can hang on unacknowledged messages, and both on a peer that reads nothing."""
    cut = threading.Timer(LINGER_S, _cut, args=(client,))
    cut.daemon = True
    cut.start()
    client.disconnect()
    client.loop_stop()
    cut.cancel()


def _cut(client: Client) -> None:
    opened: Any = client.socket()
    if opened is not None:
        with contextlib.suppress(OSError):
            opened.shutdown(socket.SHUT_RDWR)
