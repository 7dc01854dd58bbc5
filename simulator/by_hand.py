"""Hands for whoever carries out a visit on the pages of a live fleet: a lock that was opened needs somebody at its door."""

from collections.abc import Collection, Mapping
from typing import Final

from simulator.machine import SimulatedMachine

OPENS_AFTER_MS: Final = 5_000
OPEN_MS: Final = 120_000
LAST_ENTRY_MS: Final = 900_000
"""So long after the door is closed something may still be entered for this visit."""


class Hands:
    """Opens the door that somebody has unlocked, leaves in the coils what the phone says, and closes it."""

    def __init__(self, machines: Mapping[str, SimulatedMachine], speed: float) -> None:
        """At a higher `speed` the door stays open for as long by the clock on the wall."""
        self._machines, self._open_ms = machines, int(OPEN_MS * max(1.0, speed))
        self._at_work: set[str] = set()

    def lend(self, crew: Collection[str]) -> None:
        """Go to each machine that is unlocked and at which nobody of the crew works."""
        for machine in self._machines.values():
            if machine.unlocked and machine.id not in crew and machine.id not in self._at_work:
                self._go_to(machine)

    def _go_to(self, machine: SimulatedMachine) -> None:
        self._at_work.add(machine.id)
        opens_ms = machine.now_ms + OPENS_AFTER_MS
        machine.plan(opens_ms, lambda: _open(machine))
        machine.plan(opens_ms + self._open_ms, lambda: self._leave(machine))
        machine.plan(opens_ms + self._open_ms + LAST_ENTRY_MS, lambda: _fill_by_book(machine))

    def _leave(self, machine: SimulatedMachine) -> None:
        _fill_by_book(machine)
        machine.close_door()
        self._at_work.discard(machine.id)


def _open(machine: SimulatedMachine) -> None:
    machine.open_door(by_key=False)


def _fill_by_book(machine: SimulatedMachine) -> None:
    """What was counted and filled in by hand is what is there: nobody else knows better."""
    for slot in machine.agent.plan.slots:
        machine.board.coils[slot] = [lot for lot, packs in machine.agent.book(slot).queue for _ in range(packs)]
        machine.truth.counted(slot, 0)
