"""The simulator's own books of a machine's slots: what the ledger has to say, given what was told to it.

Written by itself, pack by pack, from the facts that left the machine and the entries that phones made, at the moment they
were made: it knows no server, no anchors and no late arrival, and whatever order things arrive in must end at these books.
"""

from collections import Counter, deque
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Final

from protocol.messages import TAKES_A_PACK, Count, Fact, Outcome, Refill, Vend

NAMELESS: Final = "?"


@dataclass
class CoilBook:
    """Lots of the packs that the books believe in, front first; `short` came out beyond the book, `open` may come back."""

    packs: list[str] = field(default_factory=list)
    short: list[str] = field(default_factory=list)
    open: list[tuple[str, str]] = field(default_factory=list)
    last: str = NAMELESS

    @property
    def units(self) -> int:
        """What the ledger's balance has to be; it may be negative."""
        return len(self.packs) - len(self.short)

    def gave(self, outcome: str) -> None:
        """A pack left, or may have."""
        if self.packs:
            self.last = self.packs.pop(0)
        else:
            self.short.append(self.last)
        if outcome != Outcome.DELIVERED:
            self.open.append((outcome, self.last))

    def load(self, lot: str, packs: int) -> None:
        """Packs were put in behind all others that have a name."""
        named = len(self.packs)
        while named and self.packs[named - 1] == NAMELESS:
            named -= 1
        self.packs[named:named] = [lot] * packs
        self.last = lot

    def unload(self, lot: str, packs: int) -> None:
        """Packs of one lot were taken out by hand."""
        for _ in range(packs):
            if lot in self.packs:
                self.packs.remove(lot)
                if lot not in self.packs:
                    self.last = lot
            else:
                self.short.append(lot)

    def count(self, counted: int) -> None:
        """So many were there: doubtful packs come back first, then what is too much or too little is put right in front."""
        surplus = counted - self.units
        for _, lot in sorted(self.open, key=lambda doubt: doubt[0])[: max(0, surplus)]:
            if lot in self.short:
                self.short.remove(lot)
            else:
                self.packs.insert(0, lot)
        self.open.clear()
        self.short.clear()
        while len(self.packs) > counted:
            self.last = self.packs.pop(0)
        front = self.packs[0] if self.packs else self.last
        self.packs[:0] = [front] * (counted - len(self.packs))


Told = tuple[int, int, str, Any]
"""(number in the stream, 0 for what a phone entered; slot; what; value)."""


class Books:
    """All slots of one machine. What the server has not acknowledged may be lost with a card: it is kept apart."""

    def __init__(self) -> None:
        self.slots: dict[int, CoilBook] = {}
        self._sure: dict[int, CoilBook] = {}
        self._recent: deque[Told] = deque()

    def fact(self, seq: int, fact: Fact) -> None:
        """Take a fact that the machine has recorded."""
        match fact:
            case Vend() if fact.outcome in TAKES_A_PACK:
                self._take((seq, fact.slot, "gave", fact.outcome))
            case Count():
                self._take((seq, fact.slot, "count", fact.counted))
            case Refill():
                for lot in fact.removed:
                    self._take((seq, fact.slot, "remove", (lot.lot, lot.packs)))
                for lot in fact.added:
                    self._take((seq, fact.slot, "refill", (lot.lot, lot.packs)))
            case _:
                pass

    def entered(self, kind: str, slot: int, values: Mapping[str, Any]) -> None:
        """Take what a phone entered in a door session: count, refill or remove."""
        value = values["counted"] if kind == "count" else (values["lot"], values["packs"])
        self._take((0, slot, kind, value))

    def _take(self, told: Told) -> None:
        _apply(self.slots, told)
        self._recent.append(told)

    def acknowledged(self, through_seq: int) -> None:
        """The server has these facts: they can no longer be lost."""
        while self._recent and self._recent[0][0] <= through_seq:
            _apply(self._sure, self._recent.popleft())

    def card_lost(self) -> dict[int, int]:
        """What no server has heard of never happened, as far as its books go; returns the packs of it by slot."""
        gone: Counter[int] = Counter(slot for seq, slot, what, _ in self._recent if seq and what == "gave")
        self._recent = deque(told for told in self._recent if told[0] == 0)
        while self._recent:
            _apply(self._sure, self._recent.popleft())
        self.slots = deepcopy(self._sure)
        return gone

    def to_json(self) -> dict[str, Any]:
        """Return the books as plain values."""
        return {"slots": _written(self.slots), "sure": _written(self._sure), "recent": list(self._recent)}

    def restore(self, value: Mapping[str, Any]) -> None:
        """Take back what `to_json` gave."""
        self.slots, self._sure = _read(value["slots"]), _read(value["sure"])
        self._recent = deque((seq, slot, what, told) for seq, slot, what, told in value["recent"])


def _apply(slots: dict[int, CoilBook], told: Told) -> None:
    _, slot, what, value = told
    book = slots.setdefault(slot, CoilBook())
    match what:
        case "gave":
            book.gave(value)
        case "count":
            book.count(value)
        case "refill":
            book.load(*value)
        case "remove":
            book.unload(*value)
        case _:
            raise ValueError(f"kind = {what!r}: expected gave, count, refill or remove")


def _written(slots: Mapping[int, CoilBook]) -> dict[str, Any]:
    return {str(slot): [book.packs, book.short, book.open, book.last] for slot, book in slots.items()}


def _read(value: Mapping[str, Any]) -> dict[int, CoilBook]:
    return {
        int(slot): CoilBook(packs, short, [(name, lot) for name, lot in doubts], last)
        for slot, (packs, short, doubts, last) in value.items()
    }
