"""Driver of the HDB-1 board on Modbus RTU, with an XY-MD02 sensor on the same line or on one of its own.

The board runs a sequence id once and keeps the result, so a vend may be written as often as the wire needs it.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from device_agent.events import (
    BoardFault,
    BoardFaultEnded,
    BoardResult,
    DoorChanged,
    Event,
    InputsRead,
    SensorRead,
    ServiceKeyTurned,
    VendEnded,
)
from device_agent.hal.modbus_frames import Function, Request, bits, read, registers, write_coil, write_registers
from device_agent.hal.modbus_line import ModbusLine, Question
from device_agent.hal.options import Options
from device_agent.hal.ports import BoardError
from device_agent.hal.serial_port import SerialPort
from device_agent.hal.xymd02 import Xymd02, climate
from protocol.messages import Board

INPUTS: Final = 6
STATE_REGISTERS: Final = 14
SLOT_STATES: Final = 20
SLOTS: Final = 64
COMMAND: Final = 0x10
LOCK: Final = 0
INPUTS_EVERY_S: Final = 0.2
STATE_EVERY_S: Final = 1.0
STATE_IN_VEND_EVERY_S: Final = 0.05
SENSOR_EVERY_S: Final = 30.0
ABSENT_S: Final = 0.5
"""So long, and twice at least, the board must not know a sequence id before it is said never to have run."""
CLEAR_S: Final = 1.0


class Do(IntEnum):
    """Values of the command register."""

    VEND = 1
    HOME = 2
    SELF_TEST = 3
    CLEAR_JAM = 4
    QUARTER_TURN = 5


class SlotState(IntEnum):
    """Values of the slot registers."""

    ABSENT = 0
    OK = 1
    JAM = 2
    DISABLED = 3


NONE: Final = 0
BUSY: Final = 1
RESULTS: Final = {
    2: BoardResult.DROPPED,
    3: BoardResult.NO_DROP,
    4: BoardResult.JAM,
    5: BoardResult.MOTOR_ABSENT,
    6: BoardResult.OVER_CURRENT,
    7: BoardResult.CURTAIN_BLOCKED,
    8: BoardResult.DOOR_OPEN,
}


@dataclass(frozen=True, slots=True)
class State:
    """The first input registers of the board."""

    firmware: int
    battery_mv: int
    supply_mv: int
    climate: tuple[float, float] | None
    sequence: int
    result: int
    duration_ms: int
    life_count: int

    @classmethod
    def of(cls, data: bytes) -> "State":
        """Read the registers."""
        r = registers(data)
        return cls(r[0], r[2], r[3], climate(r[4], r[5]), r[7], r[8], r[10], r[12] | r[13] << 16)


@dataclass(slots=True)
class _Vend:
    sequence: int
    began_s: float
    absent_s: float | None = None


class ModbusBoard:
    """Implements `hal.ports.BoardDriver`."""

    def __init__(self, config: dict[str, Any]) -> None:
        options = Options(config)
        port = SerialPort(
            options.text("port"),
            options.whole("baud_rate", 19_200, 9_600, 115_200),
            options.text("parity", "none"),
        )
        self._line = ModbusLine(port, options.seconds("answer_s", 0.2))
        self._slave = options.whole("slave", 2, 1, 247)
        self._offline_after_s = options.seconds("offline_after_s", 3.0)
        self._vend_s_max = options.seconds("vend_s_max", 10.0)
        self._sensor_line, self._sensor = self._sensor_of(options)
        options.done()
        self._questions: list[tuple[Question, Callable[[bytes], None]]] = []
        self._due_s = {Function.READ_DISCRETE: 0.0, Function.READ_INPUT: 0.0}
        self._events: list[Event] = []
        self._state: State | None = None
        self._inputs: list[bool] | None = None
        self._vend: _Vend | None = None
        self._heard_s = time.monotonic()
        self._offline_told = False
        self._cabinet: InputsRead | None = None
        self._read_at_s = -math.inf

    def _sensor_of(self, options: Options) -> tuple[ModbusLine, Xymd02 | None]:
        slave = options.whole("sensor_slave", 0, 0, 247)
        every_s = options.seconds("sensor_every_s", 10.0)
        own_port = options.optional_text("sensor_port")
        parity = options.text("sensor_parity", "none")
        line = self._line
        if own_port is not None:
            line = ModbusLine(SerialPort(own_port, 9_600, parity), 0.3)
        return line, Xymd02(line, slave or 1, every_s) if slave or own_port is not None else None

    def open(self) -> None:
        """Open the port and wait until the board is at rest; raises BoardError where it does not answer."""
        try:
            self._line.port.open()
            ends_s = time.monotonic() + self._offline_after_s
            while self._state is None or self._inputs is None:
                try:
                    self._read_state()
                    self._inputs_arrived(self._line.exchange(self._inputs_request()))
                except BoardError:
                    if time.monotonic() > ends_s or not self._line.port.is_open:
                        raise
            self._offline_told = False  # Nobody was told yet.
            # Whoever asks for the stored result while the motor turns asks too early.
            ends_s = time.monotonic() + self._vend_s_max
            while self._state.result == BUSY and time.monotonic() < ends_s:
                self._line.port.wait(STATE_IN_VEND_EVERY_S)
                self._state = self._read_state()
        except BoardError:
            self.close()
            raise

    # ------------------------------------------------------------ the port of the agent

    def identity(self) -> Board:
        return Board(model="HDB-1", runs_sequence_once=True, counts_life=True)

    def start_vend(self, slot: int, board_sequence: int, *, drop_sensor: bool) -> None:
        if self._vend is not None:
            if self._vend.sequence != board_sequence:
                raise self._failure(f"sequence {board_sequence}: sequence {self._vend.sequence} is under way")
            return
        if self._offline_told or not 1 <= slot <= SLOTS:
            self._events.append(VendEnded(board_sequence, BoardResult.NOT_RUN))
            return
        self._vend = _Vend(board_sequence, time.monotonic())
        request = write_registers(self._slave, COMMAND, Do.VEND, slot, int(drop_sensor), board_sequence)
        try:
            self._line.exchange(request)
        except BoardError:
            return  # It may have arrived all the same: `poll` asks the board what it ran.

    def stored_result(self, board_sequence: int) -> BoardResult | None:
        state = self._read_state()
        if state.sequence != board_sequence or state.result == NONE:
            return None
        if state.result == BUSY:
            raise self._failure(f"sequence {board_sequence} is still under way")
        return RESULTS.get(state.result, BoardResult.UNKNOWN)

    def life_count(self) -> int | None:
        return None if self._state is None else self._state.life_count

    def last_sequence(self) -> int | None:
        return None if self._state is None or self._state.result == NONE else self._state.sequence

    def door_is_open(self) -> bool:
        return self._inputs is not None and not self._inputs[0]

    def pulse_lock(self) -> None:
        self._exchange(write_coil(self._slave, LOCK, on=True))

    def clear_jam(self, slot: int) -> bool:
        if not 1 <= slot <= SLOTS:
            return False
        ends_s = time.monotonic() + CLEAR_S
        request = read(self._slave, Function.READ_INPUT, SLOT_STATES + slot - 1, 1)
        try:
            self._line.exchange(write_registers(self._slave, COMMAND, Do.CLEAR_JAM, slot))
            while True:
                (state,) = registers(self._line.exchange(request))
                if state != SlotState.JAM or time.monotonic() > ends_s:
                    return state == SlotState.OK
        except BoardError:
            return False

    def self_test(self) -> tuple[bool, str]:
        try:
            self._line.exchange(write_registers(self._slave, COMMAND, Do.SELF_TEST))
            state = State.of(self._line.exchange(self._state_request()))
            slots = registers(self._line.exchange(read(self._slave, Function.READ_INPUT, SLOT_STATES, SLOTS)))
        except BoardError as error:
            return False, str(error)
        jams = slots.count(SlotState.JAM)
        curtain_clear = self._inputs is not None and self._inputs[4]
        words = f"firmware {state.firmware}, {slots.count(SlotState.OK)} slots well, {jams} jammed"
        return curtain_clear, words + ("" if curtain_clear else ", light curtain blocked")

    def show(self, lines: Sequence[str]) -> None:
        """The board has no screen."""

    def poll(self) -> list[Event]:
        now_s = time.monotonic()
        self._line.advance()
        self._take_answers()
        if self._sensor is not None:
            if self._sensor_line is not self._line:
                self._sensor_line.advance()
            self._events += self._sensor.advance(now_s)
        self._ask(now_s)
        self._watch(now_s)
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        self._line.close()
        self._sensor_line.close()

    # ------------------------------------------------------------ asking

    def _inputs_request(self) -> Request:
        return read(self._slave, Function.READ_DISCRETE, 0, INPUTS)

    def _state_request(self) -> Request:
        return read(self._slave, Function.READ_INPUT, 0, STATE_REGISTERS)

    def _read_state(self) -> State:
        self._state = State.of(self._exchange(self._state_request()))
        self._heard_s = time.monotonic()
        return self._state

    def _exchange(self, request: Request) -> bytes:
        try:
            return self._line.exchange(request)
        except BoardError as error:
            raise self._failure(str(error)) from None

    def _failure(self, words: str) -> BoardError:
        """An error for the runtime, which tells every one of them as this fault: so its end is owed."""
        self._offline_told = True
        return BoardError(words)

    def _ask(self, now_s: float) -> None:
        """One question at a time, the most urgent first."""
        if not self._line.is_free or self._questions:
            return
        state_every_s = STATE_EVERY_S if self._vend is None else STATE_IN_VEND_EVERY_S
        for function, request, every_s, arrived in (
            (Function.READ_INPUT, self._state_request(), state_every_s, self._state_arrived),
            (Function.READ_DISCRETE, self._inputs_request(), INPUTS_EVERY_S, self._inputs_arrived),
        ):
            if now_s >= self._due_s[function] + every_s:
                self._due_s[function] = now_s
                self._questions.append((self._line.ask(request), arrived))
                return

    def _take_answers(self) -> None:
        over = [pair for pair in self._questions if pair[0].is_over]
        self._questions = [pair for pair in self._questions if not pair[0].is_over]
        for question, arrived in over:
            now_s = time.monotonic()
            if question.answer is not None:
                self._heard_s = now_s
                if self._offline_told:
                    self._offline_told = False
                    self._events.append(BoardFaultEnded("VMC_OFFLINE"))
                arrived(question.answer)
            elif not self._offline_told and now_s - self._heard_s > self._offline_after_s:
                self._offline_told = True
                self._events.append(BoardFault("VMC_OFFLINE", None, question.failed[:200]))

    # ------------------------------------------------------------ what the board says

    def _state_arrived(self, data: bytes) -> None:
        self._state = state = State.of(data)
        now_s = time.monotonic()
        if now_s - self._read_at_s >= SENSOR_EVERY_S:
            self._read_at_s = now_s
            found = self._sensor.reading if self._sensor is not None else state.climate
            temperature_c, humidity_pct = found or (None, None)
            supply_mv = min(state.supply_mv, 60_000)
            self._events.append(
                SensorRead(temperature_c, humidity_pct, supply_mv=supply_mv, battery_mv=min(state.battery_mv, 60_000))
            )
        vend = self._vend
        if vend is None:
            return
        if state.sequence == vend.sequence and state.result != NONE:
            if state.result != BUSY:
                result = RESULTS.get(state.result, BoardResult.UNKNOWN)
                self._end_vend(VendEnded(vend.sequence, result, state.duration_ms, state.life_count))
        elif vend.absent_s is None:
            vend.absent_s = now_s
        elif now_s - vend.absent_s > ABSENT_S:
            self._end_vend(VendEnded(vend.sequence, BoardResult.NOT_RUN, None, state.life_count))

    def _end_vend(self, ended: VendEnded) -> None:
        self._vend = None
        self._events.append(ended)

    def _inputs_arrived(self, data: bytes) -> None:
        before, self._inputs = self._inputs, bits(data, INPUTS)
        closed, _, mains, tamper, curtain_clear, key = self._inputs
        if before is not None and before[0] != closed:
            self._events.append(DoorChanged(open=not closed, life_count=self.life_count()))
        if key != (before is not None and before[5]):
            self._events.append(ServiceKeyTurned(on=key))
        cabinet = InputsRead(mains, tamper, curtain_clear)
        if cabinet != self._cabinet:
            self._cabinet = cabinet
            self._events.append(cabinet)

    def _watch(self, now_s: float) -> None:
        vend = self._vend
        if vend is not None and now_s - vend.began_s > self._vend_s_max:
            self._end_vend(VendEnded(vend.sequence, BoardResult.UNKNOWN))


def open_board(config: dict[str, Any]) -> ModbusBoard:
    """The factory that an agent's configuration names: `driver = "device_agent.hal.modbus_board:open_board"`."""
    board = ModbusBoard(config)
    board.open()
    return board
