"""A board on virtual time: coils as queues of packs, a motor, a drop sensor, and a memory of the last result.

It keeps the physical truth. What a machine cannot observe (a double drop, a pack that fell unseen or did not fall) happens
here and is known here.
"""

import random
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from device_agent.events import BoardResult
from protocol.messages import Board
from simulator.parameters import Parameters

IDENTITY: Final = Board(model="SIM-1", runs_sequence_once=True, counts_life=True)


@dataclass(frozen=True, slots=True)
class Chances:
    """Shares of vends that go wrong by themselves; the defaults are those of the parameters' defaults."""

    jam: float = 0.004
    fell_unseen: float = 0.0014
    did_not_fall: float = 0.0006
    double_drop: float = 0.0005

    @classmethod
    def of(cls, parameters: Parameters) -> "Chances":
        """Read the rates of faults.csv and of what no machine can observe."""
        unseen = parameters.number("faults.DROP_NOT_SEEN.rate") / 1000
        there = parameters.number("vends.did_not_fall_share")
        return cls(
            parameters.number("faults.SLOT_JAM.rate") / 1000,
            unseen * (1 - there),
            unseen * there,
            parameters.number("vends.double_drop_per_1000") / 1000,
        )


class Fault(StrEnum):
    """What can be planted for the next turn of a slot. JAM and ABSENT last until repaired."""

    JAM = "jam"
    ABSENT = "absent"
    OVER_CURRENT = "over_current"
    DID_NOT_FALL = "did_not_fall"
    FELL_UNSEEN = "fell_unseen"
    DOUBLE_DROP = "double_drop"


OUTCOMES: Final[dict[Fault, tuple[BoardResult, int]]] = {
    Fault.JAM: (BoardResult.JAM, 0),
    Fault.ABSENT: (BoardResult.MOTOR_ABSENT, 0),
    Fault.OVER_CURRENT: (BoardResult.OVER_CURRENT, 0),
    Fault.DID_NOT_FALL: (BoardResult.NO_DROP, 0),
    Fault.FELL_UNSEEN: (BoardResult.NO_DROP, 1),
    Fault.DOUBLE_DROP: (BoardResult.DROPPED, 2),
}
ANY_SLOT: Final = 0
"""Where a fault is planted for whichever slot turns next."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of a motor: what the board says of it, how long it took, and how many packs really fell."""

    board_sequence: int
    slot: int
    result: BoardResult
    duration_ms: int
    fell: int


@dataclass
class VirtualBoard:
    """Coils of lots, front first. `coils[slot]` lists the lot of every pack."""

    randomness: random.Random
    coils: dict[int, list[str]] = field(default_factory=dict)
    jammed: set[int] = field(default_factory=set)
    life_count: int = 0
    last: Turn | None = None
    chances: Chances = Chances()
    planted: dict[int, list[Fault]] = field(default_factory=dict)
    absent: set[int] = field(default_factory=set)
    curtain_clear: bool = True

    def run(self, slot: int, board_sequence: int) -> Turn:
        """Turn a motor; the same sequence id again returns the stored result and turns nothing."""
        if self.last is not None and self.last.board_sequence == board_sequence:
            return self.last
        self.life_count += 1
        duration_ms = self.randomness.randrange(1_200, 3_500)
        result, fell = self._outcome(slot)
        coil = self.coils.setdefault(slot, [])
        fell = min(fell, len(coil))
        del coil[:fell]
        self.last = Turn(board_sequence, slot, result, duration_ms, fell)
        return self.last

    def _outcome(self, slot: int) -> tuple[BoardResult, int]:
        chance = self.randomness.random()
        waiting = self.planted.get(slot) or self.planted.get(ANY_SLOT)
        fault = waiting.pop(0) if waiting else None
        if fault is Fault.JAM:
            self.jammed.add(slot)
        elif fault is Fault.ABSENT:
            self.absent.add(slot)
        if slot in self.absent:
            return BoardResult.MOTOR_ABSENT, 0
        if fault is not None:
            return OUTCOMES[fault]
        return self._by_chance(slot, chance)

    def _by_chance(self, slot: int, chance: float) -> tuple[BoardResult, int]:
        if slot in self.jammed:
            return BoardResult.JAM, 0
        if not self.coils.get(slot):
            return BoardResult.NO_DROP, 0
        for share, result, fell in (
            (self.chances.jam, BoardResult.JAM, 0),
            (self.chances.fell_unseen, BoardResult.NO_DROP, 1),
            (self.chances.did_not_fall, BoardResult.NO_DROP, 0),
            (self.chances.double_drop, BoardResult.DROPPED, 2),
        ):
            if chance < share:
                if result is BoardResult.JAM:
                    self.jammed.add(slot)
                return result, fell
            chance -= share
        return BoardResult.DROPPED, 1

    def plant(self, slot: int, *faults: Fault) -> None:
        """Let the next turns of a slot go wrong, in this order."""
        self.planted.setdefault(slot, []).extend(faults)

    def stored(self, board_sequence: int) -> BoardResult | None:
        """Return the result of a sequence id, if it was the last one run."""
        return self.last.result if self.last is not None and self.last.board_sequence == board_sequence else None

    @property
    def last_sequence(self) -> int:
        """The sequence id run last."""
        return self.last.board_sequence if self.last else 0

    def load(self, slot: int, lot: str, packs: int) -> None:
        """Put packs behind all others."""
        self.coils.setdefault(slot, []).extend([lot] * packs)

    def take_out(self, slot: int, lot: str) -> int:
        """Take all packs of one lot out of a coil by hand; returns how many there were."""
        coil = self.coils.get(slot, [])
        there = coil.count(lot)
        self.coils[slot] = [pack for pack in coil if pack != lot]
        return there

    def to_json(self) -> dict[str, Any]:
        """Return the physical state as plain values."""
        return {
            "coils": {str(slot): coil for slot, coil in self.coils.items()},
            "jammed": sorted(self.jammed),
            "life_count": self.life_count,
            "last": None
            if self.last is None
            else [
                self.last.board_sequence,
                self.last.slot,
                str(self.last.result),
                self.last.duration_ms,
                self.last.fell,
            ],
            "planted": {str(slot): list(map(str, faults)) for slot, faults in self.planted.items()},
            "absent": sorted(self.absent),
            "curtain_clear": self.curtain_clear,
            "randomness": _state_to_json(self.randomness),
        }

    def restore(self, value: dict[str, Any]) -> None:
        """Take the state back that `to_json` gave."""
        self.coils = {int(slot): list(coil) for slot, coil in value["coils"].items()}
        self.jammed = set(value["jammed"])
        self.life_count = value["life_count"]
        self.planted = {int(slot): [Fault(name) for name in faults] for slot, faults in value["planted"].items()}
        self.absent, self.curtain_clear = set(value["absent"]), value["curtain_clear"]
        if value["last"] is not None:
            sequence, slot, result, duration_ms, fell = value["last"]
            self.last = Turn(sequence, slot, BoardResult(result), duration_ms, fell)
        version, state, gauss = value["randomness"]
        self.randomness.setstate((version, tuple(state), gauss))


def _state_to_json(randomness: random.Random) -> list[Any]:
    version, state, gauss = randomness.getstate()
    return [version, list(state), gauss]
