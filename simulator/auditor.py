"""The simulator's own books against the server's ledger, pack by pack.

Two comparisons for every slot. The order of the lots in the coil, as the ledger has it, must be that of our own books, which
were kept from what was told, without the server. And packs physically there, less what the ledger says, must be the itemised list of what no machine can observe.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from simulator.books import CoilBook
from simulator.machine import SimulatedMachine
from simulator.server_api import ServerApi


@dataclass(frozen=True, slots=True)
class Residual:
    """A slot whose difference nothing explains; `check` says what was compared."""

    dispenser_id: str
    slot: int
    check: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.dispenser_id} slot {self.slot}: {self.check}: expected {self.expected}, found {self.found}"


@dataclass
class Findings:
    """What an audit found: residuals, and the list of explained differences by cause."""

    slots: int = 0
    physical: int = 0
    ledger: int = 0
    itemised: Counter[str] = field(default_factory=Counter)
    residuals: list[Residual] = field(default_factory=list)


class Auditor:
    """Compares; it never asks the server what happened, only what its books say.

    But for one thing: where a card was lost with facts on their way, it asks how far the server has heard that card.
    """

    def __init__(self, server: ServerApi) -> None:
        self._server = server

    def compare(self, machines: Mapping[str, SimulatedMachine]) -> Findings:
        """Compare every slot of every machine."""
        findings = Findings()
        books = dict(self._books())
        for dispenser_id, machine in machines.items():
            if machine.truth.books.in_doubt:
                streams = self._server.get(f"/dispensers/{dispenser_id}/streams")["items"]
                machine.truth.settle(stream["digest"] for stream in streams)
            ledger = {slot["slot"]: slot for slot in books[dispenser_id]}
            for slot in sorted(set(ledger) | set(machine.board.coils)):
                _compare_slot(findings, machine, slot, ledger.get(slot, {"units": 0, "queue": []}))
        return findings

    def _books(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Yield every dispenser's slots, as the server's books have them."""
        page = self._server.get("/slots")["items"]
        while page:
            yield from ((of["id"], of["slots"]) for of in page)
            page = self._server.get(f"/slots?after={page[-1]['id']}")["items"]


def _compare_slot(findings: Findings, machine: SimulatedMachine, slot: int, ledger: Mapping[str, Any]) -> None:
    def check(name: str, expected: object, found: object) -> None:
        if expected != found:
            findings.residuals.append(Residual(machine.id, slot, name, str(expected), str(found)))

    physical, units = len(machine.board.coils.get(slot, [])), int(ledger["units"])
    causes = machine.truth.unobserved.get(slot, Counter())
    findings.slots += 1
    findings.physical += physical
    findings.ledger += units
    findings.itemised.update(causes)
    book = machine.truth.books.slots.get(slot) or CoilBook()
    check(f"physically {physical}, {dict(causes)}", physical - sum(causes.values()), units)
    check("balance", book.units, units)
    held = [run["lot"] for run in ledger["queue"] for _ in range(run["packs"])]
    check("lots", _runs(book.packs), _runs(held))


def _runs(packs: list[str]) -> list[tuple[str, int]]:
    return [(lot, len(list(run))) for lot, run in groupby(packs)]
