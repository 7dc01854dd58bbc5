"""What the agent's runtime asks of a board; a driver for a real board implements it."""

from collections.abc import Sequence
from typing import Any, Protocol

from device_agent.events import BoardResult, Event
from protocol.messages import Board


class BoardError(RuntimeError):
    """The board does not answer, or answers what nobody understands."""


class BoardDriver(Protocol):
    """One board. No call blocks for longer than a serial exchange; what takes time is reported by `poll`."""

    def identity(self) -> Board:
        """Say what the board is and can do."""
        ...

    def start_vend(self, slot: int, board_sequence: int, *, drop_sensor: bool) -> None:
        """Begin to turn a motor; VendEnded follows from `poll`. A board that runs a sequence once runs it once."""
        ...

    def stored_result(self, board_sequence: int) -> BoardResult | None:
        """Return the stored result of a sequence id; None where the board never ran it or does not remember."""
        ...

    def life_count(self) -> int | None:
        """Return the board's count of vends for life, where it keeps one."""
        ...

    def last_sequence(self) -> int | None:
        """Return the sequence id that the board ran last, where it remembers one."""
        ...

    def door_is_open(self) -> bool:
        """Tell whether the door is open."""
        ...

    def pulse_lock(self) -> None:
        """Open the lock."""
        ...

    def clear_jam(self, slot: int) -> bool:
        """Turn the motor home and clear the jam; returns whether that worked."""
        ...

    def self_test(self) -> tuple[bool, str]:
        """Test the board; returns whether it is well, and words."""
        ...

    def show(self, lines: Sequence[str]) -> None:
        """Show lines on the machine's screen."""
        ...

    def poll(self) -> list[Event]:
        """Return what has happened since the last call."""
        ...

    def close(self) -> None:
        """Give the hardware back."""
        ...


class BoardFactory(Protocol):
    """Makes a driver from its section of the configuration file."""

    def __call__(self, config: dict[str, Any]) -> BoardDriver:
        """Open the board; raises BoardError."""
        ...
