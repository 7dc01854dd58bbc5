"""The HDB-1 board as a Modbus slave: runs a sequence id once, and answers the same id again with the stored result.

What hardware.md leaves open is fixed here: only a vend has a sequence id, the other commands leave registers 7 to 10 alone; a
vend while a motor turns is refused as "device busy"; a door that is open, without the service key, refuses a vend unrun.
"""

from typing import Final

from device_agent.events import BoardResult
from device_agent.hal.modbus_board import BUSY, COMMAND, INPUTS, LOCK, RESULTS, SLOT_STATES, Do, SlotState
from device_agent.hal.modbus_frames import Function
from simulator.boards.modbus_wire import (
    DEVICE_BUSY,
    ILLEGAL_ADDRESS,
    ILLEGAL_FUNCTION,
    ILLEGAL_VALUE,
    ModbusWire,
    RefusalError,
    Xymd02Slave,
)
from simulator.boards.physical_board import IDLE_MA, SLOTS, TURNING_MA, PhysicalBoard

FIRMWARE: Final = 3
COILS: Final = 4
CODES: Final = {result: code for code, result in RESULTS.items()}
COMMAND_REGISTERS: Final = 4
SENSOR_ADDRESS: Final = 1
BOARD_ADDRESS: Final = 2


class Hdb1Slave:
    """Implements `modbus_wire.Slave`."""

    def __init__(self, board: PhysicalBoard) -> None:
        self.board = board
        self._now_s = self._began_s = 0.0
        self._busy_until_s = 0.0
        self._holding = [0] * COMMAND_REGISTERS
        self._coils = [False] * COILS
        self._drop_sensor = True
        self._pulses = 0

    def tick(self, now_s: float) -> None:
        """Let time pass."""
        self._began_s = self._began_s or now_s
        self._now_s = now_s

    @property
    def is_busy(self) -> bool:
        """Whether a motor turns."""
        return self._now_s < self._busy_until_s

    def bit(self, function: Function, address: int) -> bool:
        board = self.board
        if function is Function.READ_COILS and address < COILS:
            return self._coils[address]
        if function is not Function.READ_DISCRETE or address >= INPUTS:
            raise RefusalError(ILLEGAL_ADDRESS)
        return (not board.door_open, True, board.mains, board.tampered, board.curtain_clear, board.key_on)[address]

    def register(self, function: Function, address: int) -> int:
        if function is Function.READ_HOLDING:
            if COMMAND <= address < COMMAND + COMMAND_REGISTERS:
                return self._holding[address - COMMAND]
            raise RefusalError(ILLEGAL_ADDRESS)
        if SLOT_STATES <= address < SLOT_STATES + SLOTS:
            slot = address - SLOT_STATES + 1
            if slot in self.board.absent:
                return SlotState.ABSENT
            return SlotState.JAM if slot in self.board.jammed else SlotState.OK
        found = self._inputs()
        if address >= len(found):
            raise RefusalError(ILLEGAL_ADDRESS)
        return found[address]

    def _inputs(self) -> list[int]:
        board, last = self.board, self.board.last
        sequence, slot, duration_ms = (last.board_sequence, last.slot, last.duration_ms) if last else (0, 0, 0)
        return [
            FIRMWARE,
            int((self._now_s - self._began_s) / 3600),
            board.battery_mv,
            board.supply_mv,
            round(10 * board.temperature_c),
            round(10 * board.humidity_pct),
            TURNING_MA if self.is_busy else IDLE_MA,
            sequence,
            self._result(),
            slot,
            duration_ms,
            self._pulses,
            board.life_count & 0xFFFF,
            board.life_count >> 16,
        ]

    def _result(self) -> int:
        last = self.board.last
        if last is None:
            return 0
        if self.is_busy:
            return BUSY
        unseen_is_well = last.result is BoardResult.NO_DROP and not self._drop_sensor
        return CODES[BoardResult.DROPPED if unseen_is_well else last.result]

    def write(self, function: Function, address: int, values: list[int]) -> None:
        if function in {Function.WRITE_COIL, Function.WRITE_COILS}:
            self._write_coils(address, values)
            return
        if function not in {Function.WRITE_REGISTER, Function.WRITE_REGISTERS}:
            raise RefusalError(ILLEGAL_FUNCTION)
        first = address - COMMAND
        if first < 0 or first + len(values) > COMMAND_REGISTERS:
            raise RefusalError(ILLEGAL_ADDRESS)
        holding = list(self._holding)
        holding[first : first + len(values)] = values
        if first == 0:
            self._obey(*holding)
        self._holding = holding

    def _write_coils(self, address: int, values: list[int]) -> None:
        if address + len(values) > COILS:
            raise RefusalError(ILLEGAL_ADDRESS)
        for coil, value in enumerate(values, address):
            if coil == LOCK and value:
                self.board.pulse_lock()  # A pulse: the coil falls back by itself.
            else:
                self._coils[coil] = bool(value)

    def _obey(self, command: int, slot: int, drop_sensor: int, sequence: int) -> None:
        if command not in set(Do) or (command != Do.SELF_TEST and not 1 <= slot <= SLOTS):
            raise RefusalError(ILLEGAL_VALUE)
        last = self.board.last
        if command == Do.VEND and last is not None and last.board_sequence == sequence:
            return
        if self.is_busy:
            raise RefusalError(DEVICE_BUSY)
        if command == Do.VEND:
            self._vend(slot, sequence, drop_sensor=bool(drop_sensor))
        elif command in {Do.CLEAR_JAM, Do.HOME}:
            self.board.clear_jam(slot)

    def _vend(self, slot: int, sequence: int, *, drop_sensor: bool) -> None:
        board, self._drop_sensor = self.board, drop_sensor
        if board.door_open and not board.key_on:
            board.refuse(slot, sequence, BoardResult.DOOR_OPEN)
        elif drop_sensor and not board.curtain_clear:
            board.refuse(slot, sequence, BoardResult.CURTAIN_BLOCKED)
        else:
            turn = board.turn(slot, sequence)
            self._busy_until_s = self._now_s + turn.duration_ms / 1000
            self._pulses += turn.result is BoardResult.DROPPED


def hdb1_wire(board: PhysicalBoard) -> ModbusWire:
    """A line with the board at address 2 and an XY-MD02 in its cabinet at address 1."""
    return ModbusWire({SENSOR_ADDRESS: Xymd02Slave(board), BOARD_ADDRESS: Hdb1Slave(board)})
