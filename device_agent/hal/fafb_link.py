"""The kiosk's half of the FA FB conversation, without I/O: answers polls, numbers and resends commands, drops repeats.

The controller speaks first, every 200 ms. A POLL is answered with one command or an ACK; the controller acknowledges the
command. Without an acknowledgement the next POLL is answered with the same bytes again, packet number included, which is how
the controller knows a repeat.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

from device_agent.hal.fafb_frames import ACK, Command, Frame, Reader, encode, next_number

RESENDS_MAX: Final = 5
QUEUE_MAX: Final = 16
SILENCE_S: Final = 0.1
"""A frame takes 45 ms at most; what has not been ended after this is not going to be."""


REPEAT_S: Final = 3.0
"""The same frame with the same number within this time is a repeat. Numbers come round after 12 s at the soonest, and a
controller that was restarted, and counts from 1 again, takes longer to say anything."""


@dataclass(slots=True, eq=False)
class Request:
    """A command on its way to the controller."""

    command: int
    text: bytes = b""
    number: int = 0
    sends: int = 0
    acknowledged: bool = False
    given_up: bool = False

    @property
    def is_over(self) -> bool:
        """Whether it needs no more sending."""
        return self.acknowledged or self.given_up


class FafbLink:
    """Bytes in by `receive`, frames out by `take`, bytes out by `outgoing`."""

    def __init__(self) -> None:
        self._reader = Reader()
        self._number = 1
        self._queue: deque[Request] = deque()
        self._current: Request | None = None
        self._taken: list[Frame] = []
        self._seen: dict[Frame, float] = {}
        self._outgoing = bytearray()
        self._received_s = 0.0
        self.heard = False
        """Whether a good frame has arrived since this was last set to False."""

    def ask(self, command: int, text: bytes = b"") -> Request:
        """Queue a command; it goes out with the next POLLs. Where the queue is full the command is given up at once."""
        request = Request(command, text)
        if len(self._queue) >= QUEUE_MAX:
            request.given_up = True
        else:
            self._queue.append(request)
        return request

    def withdraw(self, request: Request) -> None:
        """Never send a command again."""
        request.given_up = request.given_up or not request.acknowledged
        if request in self._queue:
            self._queue.remove(request)
        if self._current is request:
            self._current = None
            # A number that may have been used must not be used for another command.
            self._number = next_number(self._number)

    def receive(self, data: bytes, now_s: float) -> None:
        """Take bytes from the port."""
        frames: list[Frame] = []
        if self._reader.is_inside and now_s - self._received_s > SILENCE_S:
            frames += self._reader.silence()
        if data:
            self._received_s = now_s
            frames += self._reader.feed(data)
        self.heard = self.heard or bool(frames)
        polled = False
        for frame in frames:
            # Of several POLLs only one is fresh, and only if nothing followed it.
            polled = frame.command == Command.POLL
            if not polled:
                self._frame(frame, now_s)
        if polled:
            self._answer_poll()

    def _frame(self, frame: Frame, now_s: float) -> None:
        if frame.command == Command.ACK:
            if self._current is not None and self._current.sends:
                self._current.acknowledged = True
                self._current = None
                self._number = next_number(self._number)
            return
        self._outgoing += encode(ACK)
        self._seen = {old: seen_s for old, seen_s in self._seen.items() if now_s - seen_s < REPEAT_S}
        if frame not in self._seen:
            self._taken.append(frame)
        self._seen[frame] = now_s

    def _answer_poll(self) -> None:
        if self._current is not None and self._current.sends > RESENDS_MAX:
            self.withdraw(self._current)
        if self._current is None and self._queue:
            self._current = self._queue.popleft()
            self._current.number = self._number
        request = self._current
        if request is None:
            self._outgoing += encode(ACK)
            return
        request.sends += 1
        self._outgoing += encode(Frame(request.command, request.number, request.text))

    def take(self) -> list[Frame]:
        """Return what the controller has said, repeats left out."""
        taken, self._taken = self._taken, []
        return taken

    def outgoing(self) -> bytes:
        """Return what is to be sent. Keep first what `take` returned: this acknowledges it."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def forget_line(self) -> None:
        """The port was opened anew: half frames of the old line mean nothing."""
        self._reader = Reader()
        self._outgoing.clear()
