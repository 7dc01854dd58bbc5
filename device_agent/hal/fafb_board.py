"""Driver of the FA FB vending controller on a serial port.

The controller knows neither sequence ids nor a life counter. With `memory = FILE` the driver keeps a note of the last vend and
so runs a sequence id once; without it a vend that a power cut interrupts is in doubt.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from device_agent.events import (
    BoardFault,
    BoardFaultEnded,
    BoardResult,
    DoorChanged,
    Event,
    SensorRead,
    SlotChosen,
    VendEnded,
)
from device_agent.hal.fafb_frames import Command, Frame, SlotStatus, VendStatus, selection, slot_of
from device_agent.hal.fafb_link import FafbLink, Request
from device_agent.hal.options import Options
from device_agent.hal.ports import BoardError
from device_agent.hal.serial_port import SerialPort
from device_agent.hal.vend_memory import VendMemory
from protocol.messages import Board

EXCHANGE_S: Final = 2.0
"""Six sends at the POLLs of 200 ms, and an answer."""
CHECK_S: Final = 1.5
REOPEN_EVERY_S: Final = 0.5
SENSOR_EVERY_S: Final = 30.0
EVENTS_MAX: Final = 1_000
SLOTS_MAX: Final = 999
CLEAR_JAM: Final = bytes((0x32, 0x01))
TEMPERATURES_C: Final = (-40.0, 80.0)
HUMIDITIES_PCT: Final = (0.0, 100.0)
RESULTS: Final = {
    VendStatus.SUCCESS: BoardResult.DROPPED,
    VendStatus.MOTOR_DOES_NOT_STOP: BoardResult.JAM,
    VendStatus.MOTOR_ABSENT: BoardResult.MOTOR_ABSENT,
}


@dataclass(slots=True)
class _Vend:
    """A vend under way; `request` is None where a former run of the agent sent it."""

    sequence: int
    slot: int
    request: Request | None
    began_s: float
    turns: bool = False
    check_until_s: float | None = None

    @property
    def may_have_run(self) -> bool:
        return self.request is None or self.request.sends > 0


class FafbBoard:
    """Implements `hal.ports.BoardDriver`."""

    def __init__(self, config: dict[str, Any]) -> None:
        options = Options(config)
        self._port = SerialPort(options.text("port"), options.whole("baud_rate", 57_600, 9_600, 115_200))
        self._offline_after_s = options.seconds("offline_after_s", 3.0)
        self._status_every_s = options.seconds("status_every_s", 1.0)
        self._vend_s_max = options.seconds("vend_s_max", 10.0)
        self._elevator = options.whole("elevator", 0, 0, 1)
        memory = options.optional_text("memory")
        options.done()
        self._memory = VendMemory(memory)
        self._link = FafbLink()
        self._events: list[Event] = []
        self._vend: _Vend | None = None
        self._door_open = False
        self._lock_told = False
        self._offline_told = False
        self._reason = ""
        self._heard_s = self._opened_s = time.monotonic()
        self._status: Request | None = None
        self._status_at_s = self._sensor_at_s = -math.inf
        self._status_seen = False
        self._answers: dict[int, bytes] = {}

    def open(self) -> None:
        """Open the port and hear the controller out; raises BoardError where it does not answer.

        The first command is a harmless one, the question for the status: the controller may take a packet number that a
        former run used last for a repeat, and not run it.
        """
        self._port.open()
        self._heard_s = time.monotonic()
        note = self._memory.note
        if note is not None and note.result is None:
            # The controller may still be turning, or repeating its result, and that before it answers anything.
            self._vend = _Vend(note.sequence, note.slot, None, time.monotonic())
        if not self._until(lambda: self._status_seen, self._offline_after_s):
            self._port.close()
            raise BoardError(f"port {self._port.path}: no controller answers ({self._reason or 'silence'})")
        # Whoever asks for the stored result before that asks too early.
        self._until(lambda: self._vend is None, self._vend_s_max + CHECK_S)

    # ------------------------------------------------------------ the port of the agent

    def identity(self) -> Board:
        return Board(model="FAFB", runs_sequence_once=self._memory.is_durable, counts_life=False)

    def start_vend(self, slot: int, board_sequence: int, *, drop_sensor: bool) -> None:
        known = self._memory.result_of(board_sequence)
        if known is not None:
            if self._vend is None or self._vend.sequence != board_sequence:
                self._events.append(VendEnded(board_sequence, known))
            return
        if self._vend is not None:
            # The runtime tells every BoardError as this fault, so its end is owed.
            self._offline_told = True
            raise BoardError(f"sequence {board_sequence}: sequence {self._vend.sequence} is under way")
        if self._offline_told:
            self._events.append(VendEnded(board_sequence, BoardResult.NOT_RUN))
            return
        try:
            self._memory.begin(board_sequence, slot)
        except BoardError as error:
            full = BoardFault("STORAGE_FULL", None, str(error)[:200])
            self._events += [full, VendEnded(board_sequence, BoardResult.NOT_RUN)]
            return
        text = bytes((int(drop_sensor), self._elevator)) + selection(slot)
        self._vend = _Vend(board_sequence, slot, self._link.ask(Command.DRIVE, text), time.monotonic())

    def stored_result(self, board_sequence: int) -> BoardResult | None:
        self._advance()
        return self._memory.result_of(board_sequence)

    def life_count(self) -> int | None:
        return None

    def last_sequence(self) -> int | None:
        note = self._memory.note
        return None if note is None else note.sequence

    def door_is_open(self) -> bool:
        return self._door_open

    def pulse_lock(self) -> None:
        """The protocol has no lock: say so as a fault rather than let an unlock order look done."""
        if not self._lock_told:
            self._lock_told = True
            self._events.append(BoardFault("LOCK_FAULT", None, "FA FB has no command for a lock: wire it to the door"))

    def clear_jam(self, slot: int) -> bool:
        answer = self._exchange(Command.MENU, CLEAR_JAM + selection(slot), Command.MENU_ANSWER)
        return answer is not None and answer[:2] == CLEAR_JAM and answer[2:3] == b"\x00"

    def self_test(self) -> tuple[bool, str]:
        status = self._exchange(Command.ASK_STATUS, b"", Command.STATUS)
        if status is None:
            return False, f"port {self._port.path}: no answer from the controller {self._reason}".rstrip()
        temperature_c = _number(status[23:31])
        warmth = "no temperature" if temperature_c is None else f"{temperature_c} C"
        return True, f"controller answers, door {'open' if status[4] else 'closed'}, {warmth}"

    def show(self, lines: Sequence[str]) -> None:
        """The controller has no screen."""

    def poll(self) -> list[Event]:
        self._advance()
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        self._port.close()

    # ------------------------------------------------------------ the line

    def _until(self, holds: Any, seconds: float) -> bool:
        ends_s = time.monotonic() + seconds
        while not holds():
            left_s = ends_s - time.monotonic()
            if left_s <= 0:
                return False
            self._advance()
            if not holds():
                self._pause(min(left_s, 0.02))
        return True

    def _pause(self, seconds: float) -> None:
        try:
            self._port.wait(seconds)
        except BoardError as error:
            self._reason = str(error)

    def _exchange(self, command: Command, text: bytes, answer: Command) -> bytes | None:
        """Ask and wait for the answer; None where none comes."""
        self._answers.pop(answer, None)
        request = self._link.ask(command, text)
        if not self._offline_told:
            self._until(lambda: answer in self._answers or request.given_up, EXCHANGE_S)
        if not request.is_over:
            self._link.withdraw(request)
        return self._answers.pop(answer, None)

    def _advance(self) -> None:
        """Read, understand, answer; whatever goes wrong with the port ends here."""
        now_s = time.monotonic()
        try:
            if not self._port.is_open:
                self._reopen(now_s)
            self._link.receive(self._port.read(), now_s)
            for frame in self._link.take():
                self._frame(frame, now_s)
            self._ask_status(now_s)
            if outgoing := self._link.outgoing():
                self._port.write(outgoing)
        except BoardError as error:
            self._reason = str(error)
        self._watch_line(now_s)
        self._watch_vend(now_s)

    def _reopen(self, now_s: float) -> None:
        if now_s - self._opened_s < REOPEN_EVERY_S:
            raise BoardError(self._reason)
        self._opened_s = now_s
        self._port.open()
        self._link.forget_line()

    def _ask_status(self, now_s: float) -> None:
        asked = self._status is not None and not self._status.is_over
        if not asked and now_s - self._status_at_s >= self._status_every_s:
            self._status, self._status_at_s = self._link.ask(Command.ASK_STATUS), now_s

    def _watch_line(self, now_s: float) -> None:
        if self._link.heard:
            self._link.heard, self._heard_s, self._reason = False, now_s, ""
            if self._offline_told:
                self._offline_told = False
                self._events.append(BoardFaultEnded("VMC_OFFLINE"))
        elif not self._offline_told and now_s - self._heard_s > self._offline_after_s:
            self._offline_told = True
            detail = self._reason or f"no POLL for {self._offline_after_s:g} s"
            self._events.append(BoardFault("VMC_OFFLINE", None, detail[:200]))

    # ------------------------------------------------------------ what the controller says

    def _frame(self, frame: Frame, now_s: float) -> None:
        self._answers[frame.command] = frame.text
        match frame.command:
            case Command.VEND_STATUS:
                self._vend_status(frame.text, now_s)
            case Command.SLOT_CHECKED:
                self._slot_checked(frame.text)
            case Command.CHOSEN:
                slot = slot_of(frame.text)
                if 0 < slot <= SLOTS_MAX and len(self._events) < EVENTS_MAX:
                    self._events.append(SlotChosen(slot))
            case Command.STATUS:
                self._status_arrived(frame.text, now_s)
            case _:
                pass  # acknowledged, as everything that is well framed; the agent keeps stock and prices itself

    def _vend_status(self, text: bytes, now_s: float) -> None:
        vend, status = self._vend, text[0]
        if vend is None or slot_of(text, 1) != vend.slot or not vend.may_have_run or vend.check_until_s is not None:
            return
        if status == VendStatus.DISPENSING:
            # Only once: a controller that turns for ever must not put off the end for ever.
            vend.began_s, vend.turns = vend.began_s if vend.turns else now_s, True
        elif status == VendStatus.JAMMED:
            # Sent for a jam, and for a motor that came home while no pack was seen: the state of the slot tells which.
            self._memory.end(BoardResult.JAM)
            self._link.ask(Command.CHECK_SLOT, selection(vend.slot))
            vend.check_until_s = now_s + CHECK_S
        else:
            self._end_vend(RESULTS.get(VendStatus(status)) if status in set(VendStatus) else None, now_s)

    def _slot_checked(self, text: bytes) -> None:
        vend = self._vend
        if vend is not None and vend.check_until_s is not None and slot_of(text, 1) == vend.slot:
            is_home = text[0] in {SlotStatus.READY, SlotStatus.OUT_OF_STOCK}
            self._end_vend(BoardResult.NO_DROP if is_home else BoardResult.JAM, time.monotonic())

    def _end_vend(self, result: BoardResult | None, now_s: float) -> None:
        vend, self._vend = self._vend, None
        if vend is None:
            return
        if vend.request is not None and not vend.request.is_over:
            self._link.withdraw(vend.request)
        ended = result or BoardResult.UNKNOWN
        self._memory.end(ended)
        duration_ms = None if vend.request is None else int((now_s - vend.began_s) * 1000)
        self._events.append(VendEnded(vend.sequence, ended, duration_ms))

    def _watch_vend(self, now_s: float) -> None:
        vend = self._vend
        if vend is None:
            return
        if vend.check_until_s is not None:
            if now_s > vend.check_until_s:
                self._end_vend(BoardResult.JAM, now_s)
        elif not vend.may_have_run and (self._offline_told or now_s - vend.began_s > self._vend_s_max):
            self._end_vend(BoardResult.NOT_RUN, now_s)
        elif now_s - vend.began_s > self._vend_s_max:
            self._end_vend(None, now_s)

    def _status_arrived(self, text: bytes, now_s: float) -> None:
        door_open = text[4] != 0
        if self._status_seen and door_open != self._door_open:
            self._events.append(DoorChanged(open=door_open))
            if door_open and self._lock_told:
                self._lock_told = False
                self._events.append(BoardFaultEnded("LOCK_FAULT"))
        self._door_open, self._status_seen = door_open, True
        if now_s - self._sensor_at_s >= SENSOR_EVERY_S:
            self._sensor_at_s = now_s
            humidity_pct = _number(text[31:39], HUMIDITIES_PCT)
            self._events.append(SensorRead(temperature_c=_number(text[23:31]), humidity_pct=humidity_pct))


def _number(text: bytes, bounds: tuple[float, float] = TEMPERATURES_C) -> float | None:
    """Read a number that is sent as text; None where there is no sensor or nonsense."""
    try:
        value = float(text.strip(b" \x00").decode("ascii"))
    except ValueError:
        return None
    return value if bounds[0] <= value <= bounds[1] else None


def open_board(config: dict[str, Any]) -> FafbBoard:
    """The factory that an agent's configuration names: `driver = "device_agent.hal.fafb_board:open_board"`."""
    board = FafbBoard(config)
    board.open()
    return board
