"""The FA FB vending controller at its wire: polls, takes commands once per packet number, repeats what is not acknowledged.

What the public text leaves open is our proposal: a jammed slot is "paused" when checked; a vend that comes while another turns
is "terminated"; the door byte of the status is 0 for closed; menu 32 answers 0 for done.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

from device_agent.events import BoardResult
from device_agent.hal.fafb_frames import (
    ACK,
    POLL,
    Command,
    Frame,
    Reader,
    SlotStatus,
    VendStatus,
    encode,
    next_number,
    slot_of,
)
from device_agent.hal.fafb_frames import selection as selection_of
from simulator.boards.physical_board import SLOTS, PhysicalBoard
from simulator.boards.virtual_board import Turn

POLL_S: Final = 0.2
ANSWER_S: Final = 0.1
RESENDS_MAX: Final = 5
BEGIN_S: Final = 0.05
SILENCE_S: Final = 0.03
CLEAR_JAM: Final = 0x32
STATUSES: Final = {
    BoardResult.DROPPED: VendStatus.SUCCESS,
    BoardResult.NO_DROP: VendStatus.JAMMED,
    BoardResult.JAM: VendStatus.JAMMED,
    BoardResult.OVER_CURRENT: VendStatus.MOTOR_DOES_NOT_STOP,
    BoardResult.MOTOR_ABSENT: VendStatus.MOTOR_ABSENT,
}


@dataclass(slots=True)
class _Vend:
    slot: int
    turn: Turn
    drop_sensor: bool
    began_s: float
    told: bool = False


class FafbWire:
    """Implements `line.Wire`."""

    def __init__(self, board: PhysicalBoard, poll_s: float = POLL_S) -> None:
        self.board, self._poll_s = board, poll_s
        self._reader = Reader()
        self._received_s = 0.0
        self._messages: deque[bytes] = deque()
        self._sends = 0
        self._number = 1
        self._poll_at_s = 0.0
        self._polled_s = 0.0
        self._last_command: Frame | None = None
        self._vend: _Vend | None = None
        self.heard = 0
        """Good frames that came."""
        self.repeats = 0
        """Commands that came again with their number and were not run again."""
        self.late_answers = 0
        """Answers that came more than 100 ms after the POLL."""

    def press(self, slot: int) -> None:
        """A visitor chooses at the keypad; 0 cancels."""
        self._say(Command.CHOSEN, selection_of(slot))

    def _say(self, command: int, text: bytes = b"") -> None:
        self._messages.append(encode(Frame(command, self._number, text)))
        self._number = next_number(self._number)

    def advance(self, now_s: float, received: bytes) -> list[bytes]:
        """Take what arrived and return the messages that are due."""
        frames: list[Frame] = []
        if received:
            self._received_s = now_s
            frames = self._reader.feed(received)
        elif self._reader.is_inside and now_s - self._received_s > SILENCE_S:
            frames = self._reader.silence()
        replies: list[bytes] = []
        self.heard += len(frames)
        for frame in frames:
            self.late_answers += now_s - self._polled_s > ANSWER_S
            replies += self._frame(frame, now_s)
        self._watch_vend(now_s)
        if now_s >= self._poll_at_s:
            self._poll_at_s, self._polled_s = now_s + self._poll_s, now_s
            replies.append(self._next_message())
        return replies

    def _next_message(self) -> bytes:
        if self._messages and self._sends > RESENDS_MAX:
            self._messages.popleft()
            self._sends = 0
        if not self._messages:
            return encode(POLL)
        self._sends += 1
        return self._messages[0]

    def _frame(self, frame: Frame, now_s: float) -> list[bytes]:
        if frame.command == Command.ACK:
            if self._sends:
                self._messages.popleft()
                self._sends = 0
            return []
        if frame.number is None:
            return []
        if self._last_command is not None and frame.number == self._last_command.number:
            self.repeats += 1
        else:
            self._last_command = frame
            self._obey(frame, now_s)
        return [encode(ACK)]

    def _obey(self, frame: Frame, now_s: float) -> None:
        match frame.command:
            case Command.DRIVE:
                self._drive(slot_of(frame.text, 2), now_s, drop_sensor=bool(frame.text[0]))
            case Command.CHECK_SLOT:
                slot = slot_of(frame.text)
                self._say(Command.SLOT_CHECKED, bytes((self._slot_status(slot),)) + selection_of(slot))
            case Command.ASK_STATUS:
                self._say(Command.STATUS, self._status())
            case Command.ASK_DELIVERY_DOOR:
                self._say(Command.DELIVERY_DOOR, b"\x00")
            case Command.SYNC:
                for slot in sorted(self.board.coils):
                    self._report(slot)
            case Command.SET_POLL if frame.text[0]:
                self._poll_s = frame.text[0] / 10
            case Command.MENU if len(frame.text) >= 2:  # noqa: PLR2004 - type and operation
                self._menu(frame.text)
            case _:
                pass

    def _drive(self, slot: int, now_s: float, *, drop_sensor: bool) -> None:
        if self._vend is not None:
            self._say(Command.VEND_STATUS, bytes((VendStatus.TERMINATED,)) + selection_of(slot))
            return
        turn = self.board.turn(slot, self.board.life_count + 1)
        self._vend = _Vend(slot, turn, drop_sensor, now_s)

    def _watch_vend(self, now_s: float) -> None:
        vend = self._vend
        if vend is None:
            return
        age_s = now_s - vend.began_s
        if not vend.told and age_s >= BEGIN_S:
            vend.told = True
            self._say(Command.VEND_STATUS, bytes((VendStatus.DISPENSING,)) + selection_of(vend.slot))
        if vend.told and age_s >= vend.turn.duration_ms / 1000:
            self._vend = None
            unseen_is_well = vend.turn.result is BoardResult.NO_DROP and not vend.drop_sensor
            status = VendStatus.SUCCESS if unseen_is_well else STATUSES[vend.turn.result]
            self._say(Command.VEND_STATUS, bytes((status,)) + selection_of(vend.slot))

    def _slot_status(self, slot: int) -> SlotStatus:
        if slot in self.board.absent or not 1 <= slot <= SLOTS:
            return SlotStatus.ABSENT
        return SlotStatus.PAUSED if slot in self.board.jammed else SlotStatus.READY

    def _report(self, slot: int) -> None:
        packs = min(255, len(self.board.coils[slot]))
        state = 0 if self._slot_status(slot) is SlotStatus.READY else 1
        self._say(Command.SLOT_REPORT, selection_of(slot) + bytes((0, 0, 0, 0, packs, 255, 0, 0, state)))

    def _status(self) -> bytes:
        board = self.board
        climate = f"{board.temperature_c:<8.1f}{board.humidity_pct:<8.1f}".encode("ascii")
        return bytes((0, 0, 0, 0, int(board.door_open))) + bytes(8) + b"SIM-FAFB01" + climate

    def _menu(self, text: bytes) -> None:
        done = text[0] == CLEAR_JAM and len(text) >= 4 and self.board.clear_jam(slot_of(text, 2))  # noqa: PLR2004 - and a slot
        self._say(Command.MENU_ANSWER, text[:2] + bytes((0 if done else 1,)))
