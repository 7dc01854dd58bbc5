"""The least that speaks MQTT 3.1.1 at QoS 1: what a broker can relay is measured with this, not with a client library."""

import select
import socket
import struct
import threading
import time
from collections.abc import Sequence

from fleet_server.embedded import BrokerAddress

WINDOW_MAX = 1_000
"""Messages that a publisher has on their way without their PUBACK."""


def _length(size: int) -> bytes:
    encoded = bytearray()
    while True:
        size, digit = divmod(size, 128)
        encoded.append(digit | 0x80 if size else digit)
        if not size:
            return bytes(encoded)


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack(">H", len(data)) + data


class BareClient:
    """One connection; packets are parsed from one growing buffer."""

    def __init__(self, address: BrokerAddress, user: str, client_id: str) -> None:
        self._socket = socket.create_connection((address.host, address.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()
        flags = 0x02 | (0xC0 if address.users else 0)
        body = b"\x00\x04MQTT\x04" + bytes([flags]) + b"\x00\x00" + _text(client_id)
        if address.users:
            body += _text(user) + _text(address.users[user])
        self._socket.sendall(b"\x10" + _length(len(body)) + body)
        self._expect(0x20)

    def _expect(self, kind: int) -> None:
        while True:
            for head, _ in self._packets():
                if head & 0xF0 == kind:
                    return

    def _packets(self) -> list[tuple[int, bytes]]:
        """Wait for bytes; return the packets that are whole."""
        data = self._socket.recv(262_144)
        if not data:
            raise ConnectionError("the broker closed the connection")
        self._buffer += data
        found, place = [], 0
        buffer = self._buffer
        while len(buffer) - place >= 2:
            size, shift, at = 0, 0, place + 1
            while at < len(buffer):
                digit = buffer[at]
                size |= (digit & 0x7F) << shift
                shift, at = shift + 7, at + 1
                if not digit & 0x80:
                    break
            else:
                break
            if len(buffer) < at + size:
                break
            found.append((buffer[place], bytes(buffer[at : at + size])))
            place = at + size
        del buffer[:place]
        return found

    def subscribe(self, pattern: str) -> None:
        body = b"\x00\x01" + _text(pattern) + b"\x01"
        self._socket.sendall(b"\x82" + _length(len(body)) + body)
        self._expect(0x90)

    def publish_all(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """Publish in order at QoS 1, at most WINDOW_MAX ahead of the PUBACKs; returns after the last of them."""
        packets = []
        for number, (topic, payload) in enumerate(messages):
            body = _text(topic) + struct.pack(">H", number % 65_535 + 1) + payload
            packets.append(b"\x32" + _length(len(body)) + body)
        sent = acknowledged = 0
        while acknowledged < len(packets):
            room = min(WINDOW_MAX - (sent - acknowledged), len(packets) - sent)
            if room > WINDOW_MAX // 4 or (sent + room == len(packets) and room):
                self._socket.sendall(b"".join(packets[sent : sent + room]))
                sent += room
            acknowledged += sum(head & 0xF0 == 0x40 for head, _ in self._packets())

    def receive(self) -> list[bytes]:
        """Wait for messages, acknowledge them, and return their payloads."""
        payloads, acks = [], bytearray()
        for head, body in self._packets():
            if head & 0xF0 == 0x30:
                (size,) = struct.unpack_from(">H", body)
                payloads.append(body[size + 4 :])
                acks += b"\x40\x02" + body[size + 2 : size + 4]
        if acks:
            self._socket.sendall(acks)
        return payloads

    def ready(self, seconds: float) -> bool:
        return bool(select.select([self._socket], [], [], seconds)[0])

    def close(self) -> None:
        self._socket.close()


def relay_rate(address: BrokerAddress, messages: Sequence[tuple[str, bytes]]) -> float:
    """Messages a second that the broker relays from one bare publisher to one bare subscriber at QoS 1."""
    subscriber = BareClient(address, "server", "bench-subscriber")
    subscriber.subscribe("fleet/v1/+/facts")
    publisher = BareClient(address, "fleet", "bench-publisher")
    thread = threading.Thread(target=publisher.publish_all, args=(messages,))
    began = time.perf_counter()
    thread.start()
    received = 0
    while received < len(messages):
        received += len(subscriber.receive())
    seconds = time.perf_counter() - began
    thread.join()
    subscriber.close()
    publisher.close()
    return len(messages) / seconds
