"""The levers of the conformance kit for boards: what it does to a board, and what it can see of it.

A maker of another board implements `Rig` for a board of theirs, simulated or on the bench, and names it with `--rig`. A lever
that does not exist raises NotImplementedError, and the rules that need it are reported as not observed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from simulator.boards.fafb_wire import FafbWire
from simulator.boards.hdb1_wire import hdb1_wire
from simulator.boards.line import LineFault, PtyLine, Wire
from simulator.boards.physical_board import PhysicalBoard, board_of
from simulator.boards.virtual_board import Fault

VEND_S: Final = (0.25, 0.35)


class Rig(Protocol):
    """A board under test: one slot or more, empty of faults, the door closed."""

    config: dict[str, Any]
    """What the driver's factory needs to reach it."""

    def load(self, slot: int, packs: int) -> None:
        """Put packs into a slot."""
        ...

    def packs(self) -> int:
        """Count the packs that are physically there."""
        ...

    def turns(self) -> int:
        """Count how often a motor has turned."""
        ...

    def plant(self, slot: int, fault: Fault) -> None:
        """Let the next turn go wrong."""
        ...

    def door(self, *, is_open: bool) -> None:
        """Open or close the door."""
        ...

    def spoil(self, share: float, *kinds: LineFault) -> None:
        """Spoil a share of all messages, both ways; 0 ends it."""
        ...

    def power(self, *, on: bool) -> None:
        """Take the board's power, or give it back; the port stays. A vend under way is cut off."""
        ...

    def adapter(self, *, plugged: bool) -> None:
        """Pull the adapter out, or put it back: the port is gone, or there again."""
        ...

    def close(self) -> None:
        """Give the bench back."""
        ...


class SimulatedRig:
    """A simulated board on a pty; implements `Rig`."""

    def __init__(
        self, wire_of: Callable[[PhysicalBoard], Wire], here: Path, vend_s: tuple[float, float] = VEND_S
    ) -> None:
        self._wire_of, self._path, self._vend_s = wire_of, here / "board.json", vend_s
        self.board = board_of(self._path, vend_s=vend_s)
        self.line = PtyLine(wire_of(self.board), here / "port")
        self.config: dict[str, Any] = {"port": self.line.path}

    def load(self, slot: int, packs: int) -> None:
        with self.line.lock:
            self.board.load(slot, "LOT", packs)

    def packs(self) -> int:
        return sum(map(len, self.board.coils.values()))

    def turns(self) -> int:
        return self.board.turns

    def plant(self, slot: int, fault: Fault) -> None:
        with self.line.lock:
            self.board.plant(slot, fault)

    def door(self, *, is_open: bool) -> None:
        with self.line.lock:
            self.board.change(door_open=is_open)

    def spoil(self, share: float, *kinds: LineFault) -> None:
        for noise in (self.line.to_driver, self.line.to_board):
            noise.kinds, noise.share = kinds or noise.kinds, share

    def power(self, *, on: bool) -> None:
        """What the board knows after it is what stands in its file."""
        with self.line.lock:
            self.line.silent = not on
            if on:
                self.board = board_of(self._path, vend_s=self._vend_s)
                self.line.wire = self._wire_of(self.board)

    def adapter(self, *, plugged: bool) -> None:
        if plugged:
            self.line.plug_in()
        else:
            self.line.unplug()

    def close(self) -> None:
        self.line.close()


RIGS: Final[dict[str, Callable[[Path], Rig]]] = {
    "fafb": lambda here: SimulatedRig(FafbWire, here),
    "hdb1": lambda here: SimulatedRig(hdb1_wire, here),
}
