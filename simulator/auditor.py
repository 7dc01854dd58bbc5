"""The simulator's own books against the server's ledger.

For every slot: packs physically there, less what the ledger says, must be the itemised list of what no machine can observe.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from simulator.machine import SimulatedMachine
from simulator.server_api import ServerApi


@dataclass(frozen=True, slots=True)
class Residual:
    """A slot whose difference the list does not explain."""

    dispenser_id: str
    slot: int
    physical: int
    ledger: int
    explained: int

    def __str__(self) -> str:
        return (
            f"{self.dispenser_id} slot {self.slot}: physical {self.physical} - ledger {self.ledger} "
            f"= {self.physical - self.ledger}, explained {self.explained}"
        )


@dataclass
class Findings:
    """What an audit found: residuals, and the list of explained differences by cause."""

    slots: int = 0
    physical: int = 0
    ledger: int = 0
    itemised: Counter[str] = field(default_factory=Counter)
    residuals: list[Residual] = field(default_factory=list)


class Auditor:
    """Compares; it never asks the server what happened, only what its books say."""

    def __init__(self, server: ServerApi) -> None:
        self._server = server

    def compare(self, machines: Mapping[str, SimulatedMachine]) -> Findings:
        """Compare every slot of every machine."""
        findings = Findings()
        for dispenser_id, machine in machines.items():
            answer = self._server.get(f"/dispensers/{dispenser_id}")
            ledger = {slot["slot"]: slot["units"] for slot in answer["slots"]}
            for slot in sorted(set(ledger) | set(machine.board.coils)):
                self._compare_slot(findings, machine, slot, ledger.get(slot, 0))
        return findings

    @staticmethod
    def _compare_slot(findings: Findings, machine: SimulatedMachine, slot: int, ledger: int) -> None:
        physical = len(machine.board.coils.get(slot, []))
        causes = machine.unobserved.get(slot, Counter())
        explained = sum(causes.values())
        findings.slots += 1
        findings.physical += physical
        findings.ledger += ledger
        for cause, packs in causes.items():
            findings.itemised[cause] += packs
        if physical - ledger != explained:
            findings.residuals.append(Residual(machine.id, slot, physical, ledger, explained))
