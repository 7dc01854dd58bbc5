"""Boards on real ptys for tests, and drivers polled as the runtime polls them."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from device_agent.events import Event, VendEnded
from device_agent.hal.ports import BoardDriver
from simulator.boards.fafb_wire import FafbWire
from simulator.boards.hdb1_wire import hdb1_wire
from simulator.boards.line import PtyLine
from simulator.boards.modbus_wire import ModbusWire
from simulator.boards.physical_board import PhysicalBoard, board_of

VEND_S = (0.05, 0.1)


class Polled:
    """A driver and what its `poll` has told."""

    def __init__(self, driver: BoardDriver) -> None:
        self.driver = driver
        self.events: list[Event] = []
        self.longest_s = 0.0

    def poll(self) -> None:
        began_s = time.monotonic()
        self.events += self.driver.poll()
        self.longest_s = max(self.longest_s, time.monotonic() - began_s)

    def until(self, holds: Callable[[], Any], seconds: float = 5) -> "Polled":
        ends_s = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < ends_s, self.events
            self.poll()
            time.sleep(0.02)
        return self

    def told(self, *kinds: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kinds)]

    def vend(self, slot: int, sequence: int, seconds: float = 5) -> VendEnded:
        before = len(self.ended(sequence))
        self.driver.start_vend(slot, sequence, drop_sensor=True)
        self.until(lambda: len(self.ended(sequence)) > before, seconds)
        return self.ended(sequence)[-1]

    def ended(self, sequence: int) -> list[VendEnded]:
        return [ended for ended in self.told(VendEnded) if ended.board_sequence == sequence]


@contextmanager
def hdb1_line(
    directory: Path, board: PhysicalBoard | None = None
) -> Iterator[tuple[PtyLine, PhysicalBoard, ModbusWire]]:
    board = board or board_of(directory / "board.json", vend_s=VEND_S)
    wire = hdb1_wire(board)
    with PtyLine(wire, directory / "port") as line:
        line.to_driver.delay_s = line.to_board.delay_s = 0.06
        yield line, board, wire


@contextmanager
def fafb_line(
    directory: Path, board: PhysicalBoard | None = None, poll_s: float = 0.03
) -> Iterator[tuple[PtyLine, PhysicalBoard, FafbWire]]:
    board = board or board_of(directory / "board.json", vend_s=VEND_S)
    wire = FafbWire(board, poll_s)
    with PtyLine(wire, directory / "port") as line:
        # As long, in POLLs, as a delay that the controller's 200 ms meet: it knows only the last command again.
        line.to_driver.delay_s = line.to_board.delay_s = 1.25 * poll_s
        yield line, board, wire
