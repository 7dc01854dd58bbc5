"""The simulator's own books of a machine's slots: what the ledger has to say, given what was told to it.

Written by itself, pack by pack, from the facts that left the machine and the entries that phones made, at the moment they
were made: it knows no server, no anchors and no late arrival, and whatever order things arrive in must end at these books.
One thing nobody but the server can know: whether it heard what was on its way when a memory card was lost.
"""

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from dataclasses import astuple, dataclass, field
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


@dataclass(slots=True)
class Told:
    """One thing told: `seq` in the stream of the present card, 0 where no card can lose it; its `digest` in the chain, '' of a phone."""

    seq: int
    digest: str
    slot: int
    what: str
    value: Any
    doubtful: bool = False
    """A card went with it before any answer came: whether the server has heard of it, only the server can say."""


class Books:
    """All slots of one machine. What the server has not acknowledged may be lost with a card: it is kept apart."""

    def __init__(self) -> None:
        self.slots: dict[int, CoilBook] = {}
        self._sure: dict[int, CoilBook] = {}
        self._recent: deque[Told] = deque()
        # The chain, from each fact to the one before it: of facts without an answer, and of all others while something is in doubt.
        self._before: dict[str, str] = {}
        self._unanswered: deque[tuple[int, str]] = deque()

    def fact(self, seq: int, digest: str, before: str, fact: Fact) -> None:
        """Take a fact that the machine has recorded, with its digest and that of the fact before it."""
        self._before[digest] = before
        self._unanswered.append((seq, digest))
        match fact:
            case Vend() if fact.outcome in TAKES_A_PACK:
                self._take(Told(seq, digest, fact.slot, "gave", fact.outcome))
            case Count():
                self._take(Told(seq, digest, fact.slot, "count", fact.counted))
            case Refill():
                for lot in fact.removed:
                    self._take(Told(seq, digest, fact.slot, "remove", (lot.lot, lot.packs)))
                for lot in fact.added:
                    self._take(Told(seq, digest, fact.slot, "refill", (lot.lot, lot.packs)))
            case _:
                pass

    def entered(self, kind: str, slot: int, values: Mapping[str, Any]) -> None:
        """Take what a phone entered in a door session: count, refill or remove."""
        value = values["counted"] if kind == "count" else (values["lot"], values["packs"])
        self._take(Told(0, "", slot, kind, value))

    def _take(self, told: Told) -> None:
        _apply(self.slots, told)
        self._recent.append(told)

    @property
    def in_doubt(self) -> bool:
        """Whether the server may have heard of something that a card was lost with."""
        return any(told.doubtful for told in self._recent)

    def acknowledged(self, through_seq: int) -> None:
        """The server has these facts of the present card: they can no longer be lost."""
        for told in self._recent:
            if told.doubtful:
                continue
            if told.seq > through_seq:
                break
            told.seq = 0
        self._fold()
        doubt = self.in_doubt
        while self._unanswered and self._unanswered[0][0] <= through_seq:
            _, digest = self._unanswered.popleft()
            if not doubt:
                del self._before[digest]

    def _fold(self) -> None:
        while self._recent and self._recent[0].seq == 0:
            _apply(self._sure, self._recent.popleft())

    def card_lost(self, kept: Collection[str] = ()) -> dict[int, int]:
        """The card is gone, and what nobody answered with it, as far as another one in its place has not `kept` it (digests).

        Until the server says otherwise it has heard of none of it. Returns how many packs more are untold by slot, negative for less.
        """
        before = self._untold()
        for told in self._recent:
            told.doubtful = told.seq > 0 and told.digest not in kept
        self._unanswered = deque(entry for entry in self._unanswered if entry[1] in kept)
        self._count_again()
        untold = self._untold()
        untold.subtract(before)
        return untold

    def settle(self, ends: Iterable[str]) -> dict[int, int]:
        """Take the server's word for how far it has each stream (the digest there); returns packs that were told after all, by slot.

        It is held to that word: a digest names one history, and no server can make one up.
        """
        heard: set[str] = set()
        for end in ends:
            digest = end
            while digest in self._before and digest not in heard:
                heard.add(digest)
                digest = self._before[digest]
        told_after_all = self._untold()
        for told in self._recent:
            if told.doubtful and told.digest in heard:
                told.seq, told.doubtful = 0, False
        told_after_all.subtract(self._untold())
        self._count_again()
        self._fold()
        return told_after_all

    def _untold(self) -> Counter[int]:
        """Packs by slot that left and of which no server has heard, as far as no count has put that right since."""
        untold: Counter[int] = Counter()
        counted: set[int] = set()
        for told in reversed(self._recent):
            if told.what == "count" and not told.doubtful:
                counted.add(told.slot)
            elif told.what == "gave" and told.doubtful and told.slot not in counted:
                untold[told.slot] += 1
        return untold

    def _count_again(self) -> None:
        self.slots = deepcopy(self._sure)
        for told in self._recent:
            if not told.doubtful:
                _apply(self.slots, told)

    def to_json(self) -> dict[str, Any]:
        """Return the books as plain values."""
        return {
            "slots": _written(self.slots), "sure": _written(self._sure), "recent": [astuple(told) for told in self._recent],
            "before": self._before, "unanswered": list(self._unanswered),
        }  # fmt: skip

    def restore(self, value: Mapping[str, Any]) -> None:
        """Take back what `to_json` gave."""
        self.slots, self._sure = _read(value["slots"]), _read(value["sure"])
        self._recent = deque(Told(*told) for told in value["recent"])
        self._before = dict(value["before"])
        self._unanswered = deque((seq, digest) for seq, digest in value["unanswered"])


def _apply(slots: dict[int, CoilBook], told: Told) -> None:
    book = slots.setdefault(told.slot, CoilBook())
    match told.what:
        case "gave":
            book.gave(told.value)
        case "count":
            book.count(told.value)
        case "refill":
            book.load(*told.value)
        case "remove":
            book.unload(*told.value)
        case what:
            raise ValueError(f"kind = {what!r}: expected gave, count, refill or remove")


def _written(slots: Mapping[int, CoilBook]) -> dict[str, Any]:
    return {str(slot): [book.packs, book.short, book.open, book.last] for slot, book in slots.items()}


def _read(value: Mapping[str, Any]) -> dict[int, CoilBook]:
    return {
        int(slot): CoilBook(packs, short, [(name, lot) for name, lot in doubts], last)
        for slot, (packs, short, doubts, last) in value.items()
    }
