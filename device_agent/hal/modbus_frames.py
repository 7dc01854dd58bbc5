"""Modbus RTU frames: `slave | function | data | CRC-16, low byte first`. No I/O, and only the functions that our boards use."""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from device_agent.hal.ports import BoardError

FRAME_MIN: Final = 4
FRAME_MAX: Final = 256
EXCEPTION: Final = 0x80
WRITE_ECHO: Final = 8
"""Length of the answer to every write."""
REGISTERS_MAX: Final = 123


class Function(IntEnum):
    """Modbus function codes."""

    READ_COILS = 0x01
    READ_DISCRETE = 0x02
    READ_HOLDING = 0x03
    READ_INPUT = 0x04
    WRITE_COIL = 0x05
    WRITE_REGISTER = 0x06
    WRITE_COILS = 0x0F
    WRITE_REGISTERS = 0x10


BIT_READS: Final = {Function.READ_COILS, Function.READ_DISCRETE}
WRITES: Final = {Function.WRITE_COIL, Function.WRITE_REGISTER, Function.WRITE_COILS, Function.WRITE_REGISTERS}


class RefusedError(BoardError):
    """The slave answered with a Modbus exception code: it is there, and will not."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question of the master, and how its answer must look."""

    slave: int
    function: Function
    address: int
    count: int
    data: bytes = b""

    def encode(self) -> bytes:
        """Return the frame."""
        if self.function in {Function.WRITE_COIL, Function.WRITE_REGISTER}:
            body = struct.pack(">BBH", self.slave, self.function, self.address) + self.data
        else:
            body = struct.pack(">BBHH", self.slave, self.function, self.address, self.count) + self.data
        return sealed(body)

    @property
    def data_length(self) -> int:
        """Bytes of data in the answer to a read."""
        return (self.count + 7) // 8 if self.function in BIT_READS else 2 * self.count

    @property
    def answer_length(self) -> int:
        """Bytes of a good answer."""
        return WRITE_ECHO if self.function in WRITES else 5 + self.data_length


def crc16(data: bytes) -> int:
    """CRC-16/MODBUS."""
    value = 0xFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ 0xA001 if value & 1 else value >> 1
    return value


def sealed(body: bytes) -> bytes:
    """A body with its CRC."""
    return body + crc16(body).to_bytes(2, "little")


def is_sealed(frame: bytes) -> bool:
    """Whether a frame ends in its CRC."""
    return FRAME_MIN <= len(frame) <= FRAME_MAX and crc16(frame[:-2]) == int.from_bytes(frame[-2:], "little")


def read(slave: int, function: Function, address: int, count: int) -> Request:
    """Ask for bits or registers."""
    return Request(slave, function, address, count)


def write_coil(slave: int, address: int, *, on: bool) -> Request:
    """Switch one coil."""
    return Request(slave, Function.WRITE_COIL, address, 1, b"\xff\x00" if on else b"\x00\x00")


def write_registers(slave: int, address: int, *values: int) -> Request:
    """Set registers in one frame, so that the slave sees all of them or none."""
    data = struct.pack(f">B{len(values)}H", 2 * len(values), *values)
    return Request(slave, Function.WRITE_REGISTERS, address, len(values), data)


def find_answer(request: Request, received: bytes) -> bytes | None:
    """Find the answer to a request in what has arrived, noise around it or not; None where it is not there (yet).

    Returns the data of a read, nothing for a write. Raises RefusedError for an exception answer. An echo of the request, as
    some adapters give it, is passed over.
    """
    for start in range(len(received) - FRAME_MIN):
        if received[start] != request.slave:
            continue
        function = received[start + 1]
        if function == request.function | EXCEPTION:
            refused = received[start : start + 5]
            if is_sealed(refused):
                raise RefusedError(f"slave {request.slave} refuses function {request.function}: code {refused[2]}")
        elif function == request.function:
            frame = received[start : start + request.answer_length]
            if len(frame) == request.answer_length and is_sealed(frame) and _fits(request, frame):
                return b"" if request.function in WRITES else frame[3:-2]
    return None


def _fits(request: Request, frame: bytes) -> bool:
    if request.function not in WRITES:
        return frame[2] == request.data_length
    return frame[2:6] == request.encode()[2:6]


def registers(data: bytes) -> tuple[int, ...]:
    """Registers of an answer, unsigned."""
    return struct.unpack(f">{len(data) // 2}H", data)


def bits(data: bytes, count: int) -> list[bool]:
    """Bits of an answer, lowest first."""
    return [bool(data[n // 8] >> n % 8 & 1) for n in range(count)]


def signed(register: int) -> int:
    """A register as a signed number."""
    return register - 0x1_0000 if register & 0x8000 else register
