"""As much of MQTT 3.1.1 as a dispenser needs, over one socket: a will, subscriptions, QoS 0 and 1, keep-alive."""

import socket
import ssl
import struct
import time
from urllib.parse import urlsplit

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, PINGREQ = 1, 2, 3, 4, 8, 9, 12
KEEPALIVE_S, PATIENCE_S, POLL_S = 30, 10, 0.02


def _text(value):
    value = value if isinstance(value, bytes) else value.encode()
    return struct.pack("!H", len(value)) + value


class Wire:
    """One connection with its last will. OSError when it ends."""

    def __init__(self, url, dispenser_id, will_topic, will):
        parts = urlsplit(url)
        self.sock = socket.create_connection((parts.hostname, parts.port or 1883), PATIENCE_S)
        if parts.scheme == "mqtts":
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=parts.hostname)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer, self.packet_id, self.heard_s = b"", 0, time.monotonic()
        self.pinged_s = self.heard_s
        flags = 0b11101110  # user, password, will retained at QoS 1, clean session
        body = _text("MQTT") + bytes([4, flags]) + struct.pack("!H", KEEPALIVE_S) + _text(dispenser_id)
        body += _text(will_topic) + _text(will) + _text(parts.username or "") + _text(parts.password or "")
        self.send(CONNECT << 4, body)
        if self.wait_for(CONNACK)[1] != 0:
            raise OSError("the broker refuses us")

    def send(self, head, body):
        size, length = len(body), b""
        while True:
            size, digit = divmod(size, 128)
            length += bytes([digit | (0x80 if size else 0)])
            if not size:
                break
        self.sock.settimeout(PATIENCE_S)
        self.sock.sendall(bytes([head]) + length + body)

    def next_id(self):
        self.packet_id = self.packet_id % 65_535 + 1
        return struct.pack("!H", self.packet_id)

    def subscribe(self, topics):
        self.send(SUBSCRIBE << 4 | 2, self.next_id() + b"".join(_text(name) + b"\x01" for name in topics))
        self.wait_for(SUBACK)

    def publish(self, topic, payload, qos=1, retain=False):
        """Return the id under which the broker will say that it took it."""
        packet_id = self.next_id() if qos else b""
        self.send(PUBLISH << 4 | qos << 1 | retain, _text(topic) + packet_id + payload)
        return packet_id

    def wait_for(self, kind):
        ends_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < ends_s:
            packet = self.poll()
            if packet and packet[0] >> 4 == kind:
                return packet[1]
        raise OSError("the broker does not answer")

    def poll(self):
        """Return one packet as (head, body), or None; keeps the connection alive."""
        packet = self._cut()
        if packet:
            return packet
        self.sock.settimeout(POLL_S)
        try:
            read = self.sock.recv(65_536)
            if not read:
                raise OSError("the broker hung up")
            self.buffer, self.heard_s = self.buffer + read, time.monotonic()
        except TimeoutError:
            now = time.monotonic()
            if now - self.heard_s > 1.5 * KEEPALIVE_S:
                raise OSError("the broker is silent") from None
            if now - max(self.heard_s, self.pinged_s) > KEEPALIVE_S / 2:
                self.pinged_s = now
                self.send(PINGREQ << 4, b"")
        return self._cut()

    def _cut(self):
        size = shift = 0
        for place, digit in enumerate(self.buffer[1:5], 1):
            size |= (digit & 127) << shift
            shift += 7
            if digit < 128:  # noqa: PLR2004 - the last digit of the length
                end = place + 1 + size
                if len(self.buffer) < end:
                    return None
                packet = (self.buffer[0], self.buffer[place + 1 : end])
                self.buffer = self.buffer[end:]
                return packet
        return None

    def close(self):
        """Leave without a word: the will speaks for us."""
        self.sock.close()


def read_publish(wire, head, body):
    """Return topic and payload of a message, and tell the broker that it came."""
    size = struct.unpack("!H", body[:2])[0]
    topic, body = body[2 : 2 + size].decode(), body[2 + size :]
    if head & 0b110:
        wire.send(PUBACK << 4, body[:2])
        body = body[2:]
    return topic, body
