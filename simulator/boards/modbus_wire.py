"""A Modbus RTU line with slaves: frames, CRC, exception codes; and the XY-MD02 sensor as the simplest slave."""

import struct
from typing import Final, Protocol

from device_agent.hal.modbus_frames import EXCEPTION, FRAME_MAX, Function, is_sealed, sealed
from simulator.boards.physical_board import PhysicalBoard

SILENCE_S: Final = 0.03
SHORT_REQUEST: Final = 8
ILLEGAL_FUNCTION: Final = 1
ILLEGAL_ADDRESS: Final = 2
ILLEGAL_VALUE: Final = 3
DEVICE_BUSY: Final = 6
ON: Final = 0xFF00
BAUD_REGISTER: Final = 257
ADDRESS_REGISTER: Final = 256


class RefusalError(Exception):
    """A slave will not: carries the Modbus exception code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Slave(Protocol):
    """One slave, register by register; raises RefusalError."""

    def tick(self, now_s: float) -> None:
        """Let time pass."""
        ...

    def bit(self, function: Function, address: int) -> bool:
        """Read one coil or discrete input."""
        ...

    def register(self, function: Function, address: int) -> int:
        """Read one register."""
        ...

    def write(self, function: Function, address: int, values: list[int]) -> None:
        """Write coils or registers, all together."""
        ...


class ModbusWire:
    """Implements `line.Wire`. A frame with a wrong CRC is passed over in silence, as the standard wants it."""

    def __init__(self, slaves: dict[int, Slave]) -> None:
        self.slaves = slaves
        self._received = b""
        self._received_s = 0.0
        self.heard = 0
        """Good frames that came."""

    def advance(self, now_s: float, received: bytes) -> list[bytes]:
        """Take what arrived and return the messages that are due."""
        for slave in self.slaves.values():
            slave.tick(now_s)
        if received:
            self._received_s = now_s
            self._received = (self._received + received)[-FRAME_MAX:]
        elif self._received and now_s - self._received_s > SILENCE_S:
            self._received = b""
        replies = []
        while (frame := self._cut()) is not None:
            self.heard += 1
            replies.append(self._answer(self.slaves[frame[0]], frame))
        return replies

    def _cut(self) -> bytes | None:
        """Take the first good request to one of our slaves off the buffer, noise before it included."""
        for start in range(len(self._received) - 1):
            if self._received[start] not in self.slaves:
                continue
            rest = self._received[start:]
            length = SHORT_REQUEST
            if rest[1] in {Function.WRITE_COILS, Function.WRITE_REGISTERS}:
                length = 9 + rest[6] if len(rest) > 6 else FRAME_MAX  # noqa: PLR2004 - where the count of bytes stands
            if len(rest) >= length and is_sealed(rest[:length]):
                self._received = rest[length:]
                return rest[:length]
        return None

    def _answer(self, slave: Slave, frame: bytes) -> bytes:
        try:
            return sealed(frame[:2] + self._result(slave, frame))
        except RefusalError as refusal:
            return sealed(bytes((frame[0], frame[1] | EXCEPTION, refusal.code)))

    def _result(self, slave: Slave, frame: bytes) -> bytes:
        if frame[1] not in set(Function):
            raise RefusalError(ILLEGAL_FUNCTION)
        function = Function(frame[1])
        address, count = struct.unpack(">HH", frame[2:6])
        match function:
            case Function.READ_COILS | Function.READ_DISCRETE:
                value = sum(slave.bit(function, address + n) << n for n in range(_checked(count, 2000)))
                data = value.to_bytes((count + 7) // 8, "little")
                return bytes((len(data),)) + data
            case Function.READ_HOLDING | Function.READ_INPUT:
                found = [slave.register(function, address + n) & 0xFFFF for n in range(_checked(count, 125))]
                return struct.pack(f">B{count}H", 2 * count, *found)
            case Function.WRITE_COIL:
                slave.write(function, address, [int(count == ON)])
            case Function.WRITE_REGISTER:
                slave.write(function, address, [count])
            case Function.WRITE_COILS:
                _checked(count, 8 * frame[6])
                slave.write(function, address, [frame[7 + n // 8] >> n % 8 & 1 for n in range(count)])
            case Function.WRITE_REGISTERS:
                if frame[6] != 2 * _checked(count, 123):
                    raise RefusalError(ILLEGAL_VALUE)
                slave.write(function, address, list(struct.unpack(f">{count}H", frame[7:-2])))
        return frame[2:6]


def _checked(count: int, highest: int) -> int:
    if not 1 <= count <= highest:
        raise RefusalError(ILLEGAL_VALUE)
    return count


class Xymd02Slave:
    """Temperature and humidity, in tenths; `broken` answers with nonsense, as a torn probe does."""

    def __init__(self, board: PhysicalBoard) -> None:
        self.board = board
        self.broken = False
        self._holding = {BAUD_REGISTER: 9600, ADDRESS_REGISTER: 1}

    def tick(self, now_s: float) -> None:
        """Nothing changes by itself."""

    def bit(self, function: Function, address: int) -> bool:
        del function, address
        raise RefusalError(ILLEGAL_FUNCTION)

    def register(self, function: Function, address: int) -> int:
        if function is Function.READ_HOLDING and address in self._holding:
            return self._holding[address]
        if function is not Function.READ_INPUT or address not in {1, 2}:
            raise RefusalError(ILLEGAL_ADDRESS)
        if self.broken:
            return 0x7FFF
        return round(10 * (self.board.temperature_c if address == 1 else self.board.humidity_pct))

    def write(self, function: Function, address: int, values: list[int]) -> None:
        if function is not Function.WRITE_REGISTER or address not in self._holding:
            raise RefusalError(ILLEGAL_ADDRESS)
        self._holding[address] = values[0]
