"""The little of MQTT 3.1.1 that ingest speaks, as bytes: QoS 0 and 1, clean sessions. Pure."""

import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

CONNACK, PUBLISH, PUBACK, SUBACK, PINGRESP = 0x20, 0x30, 0x40, 0x90, 0xD0
PINGREQ: Final = b"\xc0\x00"
DISCONNECT: Final = b"\xe0\x00"
REFUSED: Final = 0x80
"""What a SUBACK says of a subscription that it does not give."""
PAYLOAD_BYTES_MAX: Final = 65_537
"""Of a longer payload only so much is kept: one byte more than any message may have."""
PACKET_BYTES_MAX: Final = 131_072
"""A longer packet is never held as a whole."""
KIND: Final = 0xF0
QOS: Final = 0x06
MORE: Final = 0x80

_pair = struct.Struct(">H")


class PacketError(ValueError):
    """Bytes that are no packet of MQTT."""


class Publish(NamedTuple):
    """A message; `mid` is 0 at QoS 0, which wants no answer."""

    topic: str
    payload: bytes
    mid: int


class Control(NamedTuple):
    """Any other packet: its kind and its body."""

    kind: int
    body: bytes


class Reader:
    """Cuts a stream of bytes into packets, whatever pieces it comes in. What it holds is bounded by PACKET_BYTES_MAX."""

    def __init__(self) -> None:
        self._rest = b""
        self._skip = 0

    def feed(self, data: bytes) -> list[Publish | Control]:
        """Return the packets that are whole now; raises PacketError."""
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        buffer = self._rest + data if self._rest else data
        found: list[Publish | Control] = []
        place, end = 0, len(buffer)
        while end - place >= 2:  # noqa: PLR2004 - the shortest packet
            head, size, start = buffer[place], buffer[place + 1], place + 2
            if size & MORE:
                size, start = _long_size(buffer, place + 1)
                if not start:
                    break
            if size > PACKET_BYTES_MAX:
                if end - start < PACKET_BYTES_MAX:
                    break
                found.append(_packet(head, buffer, start, start + PACKET_BYTES_MAX))
                self._skip = max(0, start + size - end)
                place = min(end, start + size)
                continue
            if start + size > end:
                break
            found.append(_packet(head, buffer, start, start + size))
            place = start + size
        self._rest = buffer[place:]
        return found


def _long_size(buffer: bytes, place: int) -> tuple[int, int]:
    """Return a length of several bytes and the place after it, which is 0 when there is more to come."""
    size = 0
    for shift in range(4):
        if place + shift >= len(buffer):
            return 0, 0
        digit = buffer[place + shift]
        size |= (digit & ~MORE) << 7 * shift
        if not digit & MORE:
            return size, place + shift + 1
    raise PacketError("a packet length of more than four bytes")


def _packet(head: int, buffer: bytes, start: int, end: int) -> Publish | Control:
    kind = head & KIND
    if kind != PUBLISH:
        return Control(kind, buffer[start:end])
    if end - start < 2:  # noqa: PLR2004 - the length of the topic
        raise PacketError("a message without a topic")
    after = start + 2 + (buffer[start] << 8 | buffer[start + 1])
    mid, body = 0, after
    if head & QOS:
        body = after + 2
        if body <= end:
            (mid,) = _pair.unpack_from(buffer, after)
    if body > end:
        raise PacketError("a message shorter than its topic")
    topic = buffer[start + 2 : after].decode(errors="replace")
    return Publish(topic, buffer[body : min(end, body + PAYLOAD_BYTES_MAX)], mid)


def _size(size: int) -> bytes:
    digits = bytearray()
    while True:
        size, digit = divmod(size, MORE)
        digits.append(digit | MORE if size else digit)
        if not size:
            return bytes(digits)


def _text(value: str) -> bytes:
    data = value.encode()
    return _pair.pack(len(data)) + data


def connect(client_id: str, keepalive_s: int, username: str | None, password: str | None) -> bytes:
    """Ask for a clean session."""
    flags = 0x02 | (0x80 if username is not None else 0) | (0x40 if password is not None else 0)
    body = _text("MQTT") + bytes([4, flags]) + _pair.pack(keepalive_s) + _text(client_id)
    body += b"".join(_text(value) for value in (username, password) if value is not None)
    return b"\x10" + _size(len(body)) + body


def subscribe(mid: int, patterns: Sequence[str]) -> bytes:
    """Ask for patterns, all at QoS 1."""
    body = _pair.pack(mid) + b"".join(_text(pattern) + b"\x01" for pattern in patterns)
    return b"\x82" + _size(len(body)) + body


def publish(topic: str, payload: bytes, mid: int, *, retain: bool) -> bytes:
    """Send a message at QoS 1."""
    body = _text(topic) + _pair.pack(mid) + payload
    return (b"\x33" if retain else b"\x32") + _size(len(body)) + body


def pubacks(mids: Iterable[int]) -> bytes:
    """Let the broker forget messages."""
    return b"".join([b"\x40\x02" + _pair.pack(mid) for mid in mids])
