"""A simulated board for the real agent process: its coils live in a file, so that they outlive the agent's death.

`python -m simulator.boards.file_board STATE ask 1`, `... door open`, `... count 1:20` and `... refill 1:CONDOM-M:L1:20` do
what a visitor and a restocker do.
"""

import fcntl
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from device_agent.events import (
    BoardResult,
    DoorChanged,
    Event,
    LocalCount,
    LocalRefill,
    ServiceKeyTurned,
    SlotChosen,
    VendEnded,
)
from device_agent.hal.ports import BoardError
from protocol.messages import Board, LotPacks

EMPTY: dict[str, Any] = {
    "coils": {}, "life_count": 0, "last": None, "door_open": False, "inbox": [], "screen": [], "vend_ms": 200,
}  # fmt: skip


class FileBoard:
    """Implements `hal.ports.BoardDriver`; every change of the file is made under its lock."""

    def __init__(self, config: dict[str, Any]) -> None:
        path = config.get("state")
        if not isinstance(path, str):
            raise BoardError(f"board.state = {path!r}: expected the path of a file")
        self._path = Path(path)
        self._due: list[tuple[float, VendEnded]] = []
        with self.state():
            pass

    @contextmanager
    def state(self) -> Iterator[dict[str, Any]]:
        """Read, change and keep the state."""
        lock = self._path.with_suffix(".lock").open("w")
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = self._path.read_text() if self._path.exists() else ""
            value = json.loads(before or json.dumps(EMPTY))
            yield value
            after = json.dumps(value)
            if after != before:
                temporary = self._path.with_suffix(".new")
                temporary.write_text(after)
                temporary.replace(self._path)

    def state_now(self) -> dict[str, Any]:
        """Read the state."""
        with self.state() as state:
            return state

    def identity(self) -> Board:
        return Board(model="FILE-1", runs_sequence_once=True, counts_life=True)

    def start_vend(self, slot: int, board_sequence: int, *, drop_sensor: bool) -> None:
        del drop_sensor
        with self.state() as state:
            if state["last"] is None or state["last"][0] != board_sequence:
                coil = state["coils"].get(str(slot), [])
                result = BoardResult.DROPPED if coil else BoardResult.NO_DROP
                del coil[:1]
                state["life_count"] += 1
                state["last"] = [board_sequence, str(result)]
            ended = VendEnded(board_sequence, BoardResult(state["last"][1]), state["vend_ms"], state["life_count"])
            self._due.append((time.monotonic() + state["vend_ms"] / 1000, ended))

    def stored_result(self, board_sequence: int) -> BoardResult | None:
        with self.state() as state:
            last = state["last"]
        return BoardResult(last[1]) if last is not None and last[0] == board_sequence else None

    def life_count(self) -> int | None:
        with self.state() as state:
            return int(state["life_count"])

    def last_sequence(self) -> int | None:
        with self.state() as state:
            return int(state["last"][0]) if state["last"] else None

    def door_is_open(self) -> bool:
        with self.state() as state:
            return bool(state["door_open"])

    def pulse_lock(self) -> None:
        with self.state() as state:
            state["unlocked"] = state.get("unlocked", 0) + 1

    def clear_jam(self, slot: int) -> bool:
        del slot
        return True

    def self_test(self) -> tuple[bool, str]:
        return True, "well"

    def show(self, lines: Sequence[str]) -> None:
        with self.state() as state:
            state["screen"] = list(lines)

    def poll(self) -> list[Event]:
        now = time.monotonic()
        events: list[Event] = [ended for due, ended in self._due if due <= now]
        self._due = [(due, ended) for due, ended in self._due if due > now]
        with self.state() as state:
            inbox, state["inbox"] = state["inbox"], []
            life_count = state["life_count"]
        for word, value in inbox:
            match word:
                case "ask":
                    events.append(SlotChosen(int(value)))
                case "door":
                    events.append(DoorChanged(open=value == "open", life_count=life_count))
                case "key":
                    events.append(ServiceKeyTurned(on=value == "on"))
                case "count":
                    slot, packs = value.split(":")
                    events.append(LocalCount(int(slot), int(packs)))
                case "refill":
                    slot, product, lot, packs = value.split(":")
                    events.append(LocalRefill(int(slot), product, (LotPacks(lot=lot, packs=int(packs)),)))
        return events

    def close(self) -> None:
        """Nothing to give back."""


def open_board(config: dict[str, Any]) -> FileBoard:
    """The factory that an agent's configuration names."""
    return FileBoard(config)


def do(board: FileBoard, word: str, value: str) -> None:
    """Let something happen at the board."""
    with board.state() as state:
        if word == "load":
            slot, lot, packs = value.split(":")
            state["coils"].setdefault(slot, []).extend([lot] * int(packs))
            return
        if word == "door":
            state["door_open"] = value == "open"
        state["inbox"].append([word, value])


if __name__ == "__main__":
    do(FileBoard({"state": sys.argv[1]}), sys.argv[2], sys.argv[3])
