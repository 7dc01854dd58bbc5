"""What a simulated board is made of, whatever its wire: coils, motors, a drop sensor, a door, a lock, power and climate.

The turning of motors is that of `virtual_board`; here a fault can be planted for the next turn of a slot, the rest of the
cabinet is added, and the state can be kept in a file, so that a power cut takes nothing but what was on the wire.
"""

import json
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from device_agent.events import BoardResult
from simulator.boards.virtual_board import Fault, Turn, VirtualBoard

SLOTS: Final = 64
VEND_S: Final = (1.2, 3.5)
IDLE_MA: Final = 0
TURNING_MA: Final = 350
CABINET: Final = (
    "door_open", "key_on", "tampered", "mains", "curtain_clear", "battery_mv", "supply_mv",
    "temperature_c", "humidity_pct", "lock_pulses",
)  # fmt: skip
BOUNDS: Final = {"temperature_c": (-99.0, 999.0), "humidity_pct": (0.0, 100.0)}
"""What the registers and texts of the wires can carry; all else is a 16-bit register."""


@dataclass
class PhysicalBoard(VirtualBoard):
    """A `VirtualBoard` in its cabinet. `by_chance` adds the rates of faults.csv; without it only planted faults happen."""

    by_chance: bool = False
    vend_s: tuple[float, float] = VEND_S
    path: Path | None = None
    turns: int = 0
    """How often any motor has turned: what a driver must not repeat."""
    door_open: bool = False
    key_on: bool = False
    tampered: bool = False
    mains: bool = True
    battery_mv: int = 12_900
    supply_mv: int = 24_100
    temperature_c: float = 23.4
    humidity_pct: float = 55.0
    lock_pulses: int = 0

    def turn(self, slot: int, board_sequence: int) -> Turn:
        """Turn a motor as `run` does, in this board's own time, and keep the state."""
        before = self.last
        turn = self.run(slot, board_sequence)
        if turn is not before:
            self.turns += 1
            low_ms, high_ms = (round(s * 1000) for s in self.vend_s)
            duration_ms = self.randomness.randint(low_ms, high_ms)
            self.last = turn = Turn(board_sequence, slot, turn.result, duration_ms, turn.fell)
            self.keep()
        return turn

    def refuse(self, slot: int, board_sequence: int, result: BoardResult) -> Turn:
        """Store a result without turning: the board would not begin."""
        if self.last is None or self.last.board_sequence != board_sequence:
            self.last = Turn(board_sequence, slot, result, 0, 0)
            self.keep()
        return self.last

    def _outcome(self, slot: int) -> tuple[BoardResult, int]:
        return super()._outcome(slot) if 1 <= slot <= SLOTS else (BoardResult.MOTOR_ABSENT, 0)

    def _by_chance(self, slot: int, chance: float) -> tuple[BoardResult, int]:
        if self.by_chance:
            return super()._by_chance(slot, chance)
        if slot in self.jammed:
            return BoardResult.JAM, 0
        return (BoardResult.DROPPED, 1) if self.coils.get(slot) else (BoardResult.NO_DROP, 0)

    def plant(self, slot: int, *faults: Fault) -> None:
        super().plant(slot, *faults)
        self.keep()

    def load(self, slot: int, lot: str, packs: int) -> None:
        super().load(slot, lot, packs)
        self.keep()

    def clear_jam(self, slot: int) -> bool:
        """Turn home and clear; a missing motor stays missing."""
        self.jammed.discard(slot)
        self.keep()
        return slot not in self.absent

    def pulse_lock(self) -> None:
        """The lock opens; somebody has to pull the door."""
        self.lock_pulses += 1
        self.keep()

    def change(self, **values: Any) -> None:
        """Let something happen to the cabinet: `change(door_open=True)`."""
        for name, value in values.items():
            if name not in CABINET:
                raise ValueError(f"{name}: expected one of {', '.join(CABINET)}")
            lowest, highest = BOUNDS.get(name, (0, 0xFFFF))
            if not lowest <= value <= highest:
                raise ValueError(f"{name} = {value}: expected {lowest} to {highest}")
            setattr(self, name, value)
        self.keep()

    # ------------------------------------------------------------ keeping

    def keep(self) -> None:
        """Write the state to its file, whole or not at all."""
        if self.path is not None:
            temporary = self.path.with_name(self.path.name + ".new")
            with temporary.open("w") as file:
                json.dump(self.to_json(), file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)

    def to_json(self) -> dict[str, Any]:
        value = super().to_json()
        value |= {name: getattr(self, name) for name in CABINET}
        return value | {"turns": self.turns}

    def restore(self, value: dict[str, Any]) -> None:
        super().restore(value)
        for name in CABINET:
            setattr(self, name, value[name])
        self.turns = value["turns"]


def board_of(path: Path | None = None, seed: str = "board", **more: Any) -> PhysicalBoard:
    """A board with the state of a file, if there is one."""
    board = PhysicalBoard(random.Random(seed), path=path, **more)  # noqa: S311 - simulation
    if path is not None and path.exists():
        board.restore(json.loads(path.read_text()))
    return board
