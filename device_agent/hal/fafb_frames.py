"""Frames of the FA FB vending controller: `FA FB | command | length | number and text | XOR of all before`. No I/O.

The protocol has no escape for FA FB inside a text: frames are cut by their length, and a wrong XOR or an impossible length
costs one byte, after which the search for FA FB goes on. The lengths matter: XOR alone cannot notice a flipped length.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

HEAD: Final = b"\xfa\xfb"
OVERHEAD: Final = 5
TEXT_MAX: Final = 254
NUMBER_MAX: Final = 255
BUFFER_MAX: Final = 4096


class Command(IntEnum):
    """What the two sides say; names as seen from the kiosk."""

    CHECK_SLOT = 0x01
    SLOT_CHECKED = 0x02
    BUY = 0x03
    VEND_STATUS = 0x04
    CHOSEN = 0x05
    DRIVE = 0x06
    SLOT_REPORT = 0x11
    SET_STOCK = 0x13
    SET_CAPACITY = 0x14
    SET_PRODUCT = 0x15
    SET_POLL = 0x16
    LOADED = 0x17
    SYNC = 0x31
    POLL = 0x41
    ACK = 0x42
    ASK_STATUS = 0x51
    STATUS = 0x52
    ASK_DELIVERY_DOOR = 0x53
    DELIVERY_DOOR = 0x54
    MENU = 0x70
    MENU_ANSWER = 0x71


class VendStatus(IntEnum):
    """The first byte of a VEND_STATUS text."""

    DISPENSING = 0x01
    SUCCESS = 0x02
    JAMMED = 0x03
    MOTOR_DOES_NOT_STOP = 0x04
    MOTOR_ABSENT = 0x06
    TERMINATED = 0xFF


class SlotStatus(IntEnum):
    """The first byte of a SLOT_CHECKED text."""

    READY = 0x01
    OUT_OF_STOCK = 0x02
    ABSENT = 0x03
    PAUSED = 0x04
    DELIVERY_DOOR_UNLOCKED = 0x06


# The length byte of each command, packet number included. The public text gives 4 for CHECK_SLOT, its fields add up to 3.
LENGTHS: Final[dict[int, tuple[int, ...]]] = {
    Command.CHECK_SLOT: (3, 4),
    Command.SLOT_CHECKED: (4,),
    Command.BUY: (3,),
    Command.VEND_STATUS: (4,),
    Command.CHOSEN: (3,),
    Command.DRIVE: (5,),
    Command.SLOT_REPORT: (12,),
    Command.SET_STOCK: (4,),
    Command.SET_CAPACITY: (4,),
    Command.SET_PRODUCT: (5,),
    Command.SET_POLL: (2,),
    Command.LOADED: (1,),
    Command.SYNC: (1,),
    Command.POLL: (0,),
    Command.ACK: (0,),
    Command.ASK_STATUS: (1,),
    Command.STATUS: (40,),
    Command.ASK_DELIVERY_DOOR: (1,),
    Command.DELIVERY_DOOR: (2,),
}


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame; POLL and ACK have no number and no text."""

    command: int
    number: int | None = None
    text: bytes = b""


POLL: Final = Frame(Command.POLL)
ACK: Final = Frame(Command.ACK)


def checksum(data: bytes | bytearray) -> int:
    """XOR of all bytes."""
    value = 0
    for byte in data:
        value ^= byte
    return value


def encode(frame: Frame) -> bytes:
    """Return a frame as bytes; raises ValueError where a number or text cannot stand in a frame."""
    if frame.number is None:
        if frame.text:
            raise ValueError(f"text {frame.text.hex()} without a number")
        body = b""
    elif 0 <= frame.number <= NUMBER_MAX and len(frame.text) <= TEXT_MAX:
        body = bytes((frame.number,)) + frame.text
    else:
        raise ValueError(f"number {frame.number}, text of {len(frame.text)} bytes: expected 0..255, at most {TEXT_MAX}")
    data = HEAD + bytes((frame.command, len(body))) + body
    return data + bytes((checksum(data),))


def next_number(number: int) -> int:
    """The packet number after this one: 1..255, then 1 again."""
    return number % NUMBER_MAX + 1


def selection(slot: int) -> bytes:
    """A slot as the two bytes of a selection number."""
    return slot.to_bytes(2, "big")


def slot_of(text: bytes, at: int = 0) -> int:
    """The slot that stands at a place of a text."""
    return int.from_bytes(text[at : at + 2], "big")


class Reader:
    """Cuts frames out of a stream of bytes that may hold anything. Memory is bounded."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.discarded = 0
        """Bytes that belonged to no frame."""

    @property
    def is_inside(self) -> bool:
        """Whether the beginning of a frame waits for its rest."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes; returns the frames that they complete."""
        self._buffer += data
        frames: list[Frame] = []
        while (frame := self._cut()) is not None:
            frames.append(frame)
        self._discard(max(0, len(self._buffer) - BUFFER_MAX))
        return frames

    def silence(self) -> list[Frame]:
        """The line has been silent: what is begun will not be ended, but a frame may stand behind it."""
        frames: list[Frame] = []
        while self._buffer:
            self._discard(1)
            frames += self.feed(b"")
        return frames

    def _cut(self) -> Frame | None:
        """Take the first good frame off the buffer; None where it needs more bytes."""
        while True:
            start = self._buffer.find(HEAD)
            if start < 0:
                # The last byte may be the first half of a head.
                self._discard(len(self._buffer) - self._buffer.endswith(HEAD[:1]))
                return None
            self._discard(start)
            if len(self._buffer) < OVERHEAD:
                return None
            command, length = self._buffer[2], self._buffer[3]
            if length not in LENGTHS.get(command, (length,)):
                self._discard(1)
                continue
            end = OVERHEAD + length
            if len(self._buffer) < end:
                return None
            if checksum(self._buffer[: end - 1]) != self._buffer[end - 1]:
                self._discard(1)
                continue
            body = bytes(self._buffer[4 : end - 1])
            del self._buffer[:end]
            return Frame(command, body[0] if body else None, body[1:])

    def _discard(self, count: int) -> None:
        self.discarded += count
        del self._buffer[:count]
