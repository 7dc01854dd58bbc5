"""The master's end of a Modbus line: one question at a time, with a timeout and resends, and never a wait in `advance`."""

import time
from collections import deque
from dataclasses import dataclass
from typing import Final

from device_agent.hal.modbus_frames import FRAME_MAX, RefusedError, Request, find_answer
from device_agent.hal.ports import BoardError
from device_agent.hal.serial_port import SerialPort

SENDS_MAX: Final = 3
REOPEN_EVERY_S: Final = 0.5
RECEIVED_MAX: Final = 4 * FRAME_MAX


@dataclass(slots=True, eq=False)
class Question:
    """A request on its way, and what came of it."""

    request: Request
    sends: int = 0
    is_due: bool = True
    sent_s: float = 0.0
    answer: bytes | None = None
    failed: str = ""
    refused: bool = False

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.answer is not None or bool(self.failed)


class ModbusLine:
    """Questions in by `ask`, their results on the question itself."""

    def __init__(self, port: SerialPort, answer_s: float) -> None:
        self.port, self._answer_s = port, answer_s
        self._waiting: deque[Question] = deque()
        self._current: Question | None = None
        self._received = b""
        self._opened_s = time.monotonic()
        self._rests_until_s = 0.0

    @property
    def is_free(self) -> bool:
        """Whether nothing is on its way."""
        return self._current is None and not self._waiting

    def ask(self, request: Request) -> Question:
        """Queue a request; the caller asks only while the line is free, or waits in `exchange`."""
        question = Question(request)
        self._waiting.append(question)
        return question

    def advance(self) -> None:
        """Read and send what is due. What goes wrong ends the question, and never this call."""
        now_s = time.monotonic()
        try:
            if not self.port.is_open:
                self._reopen(now_s)
            self._received = (self._received + self.port.read())[-RECEIVED_MAX:]
            self._hear(now_s)
            self._send(now_s)
        except BoardError as error:
            self._received = b""
            if self._current is None and self._waiting:
                self._current = self._waiting.popleft()
            self._finish(failed=str(error))

    def _reopen(self, now_s: float) -> None:
        if now_s - self._opened_s < REOPEN_EVERY_S:
            raise BoardError(f"port {self.port.path}: gone")
        self._opened_s = now_s
        self.port.open()

    def _hear(self, now_s: float) -> None:
        question = self._current
        if question is None or not question.sends:
            return
        try:
            answer = find_answer(question.request, self._received)
        except RefusedError as error:
            question.refused = True
            self._finish(failed=str(error))
            return
        if answer is not None:
            self._finish(answer=answer)
        elif not question.is_due and now_s - question.sent_s > self._answer_s:
            if question.sends >= SENDS_MAX:
                self._finish(failed=f"slave {question.request.slave}: no answer to {question.sends} requests")
            else:
                question.is_due = True

    def _send(self, now_s: float) -> None:
        if self._current is None and self._waiting:
            self._current = self._waiting.popleft()
        question = self._current
        if question is None or not question.is_due or now_s < self._rests_until_s:
            return
        self.port.discard()
        self._received = b""
        question.sends, question.sent_s, question.is_due = question.sends + 1, now_s, False
        self.port.write(question.request.encode())

    def _finish(self, answer: bytes | None = None, failed: str = "") -> None:
        question, self._current = self._current, None
        if question is not None:
            question.answer, question.failed = answer, failed
            if question.sends > 1 or (failed and not question.refused):
                # Answers carry no number: a late one to a resend must be gone before the next question is asked.
                self._rests_until_s = time.monotonic() + self._answer_s

    def exchange(self, request: Request) -> bytes:
        """Ask and wait for the answer, at most three timeouts and a rest; raises BoardError."""
        while not self.is_free:
            self._step()
        question = self.ask(request)
        while not question.is_over:
            self._step()
        if question.answer is None:
            raise RefusedError(question.failed) if question.refused else BoardError(question.failed)
        return question.answer

    def _step(self) -> None:
        self.advance()
        if not self.is_free:
            try:
                self.port.wait(0.005)
            except BoardError:
                return  # The next step finds the port gone and ends the question.

    def close(self) -> None:
        """Give the port back."""
        self.port.close()
