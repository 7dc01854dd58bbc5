"""The book of one slot: a fold over its entries in the order of their anchors. Pure; nothing here knows a database.

A slot is a physical queue of lots: what was loaded first comes out first. Reality wins over the book: a pack that comes
out of a slot whose book is empty is *owed*, which makes the book negative until a count puts it right.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, Self, assert_never

UNKNOWN: Final = "?"
"""Product or lot of packs that no entry ever named."""


class Anchor(NamedTuple):
    """The place of an entry in a machine's history: facts have step 0, operations of the door session opened at seq have 1 and up."""

    stream_no: int
    seq: int
    step: int


class Posting(NamedTuple):
    """Units that move between two accounts."""

    source: str
    target: str
    product: str
    lot: str
    units: int
    reason: str


class Taken(NamedTuple):
    """The machine moved one pack out of the coil; `into` says what it became."""

    into: Literal["dispensed", "test", "unverified", "in_doubt"]
    product: str | None = None
    claimed_lot: str | None = None


@dataclass(frozen=True, slots=True)
class Added:
    """Packs of one lot were loaded behind all others."""

    product: str
    lot: str
    packs: int
    source: str


@dataclass(frozen=True, slots=True)
class Removed:
    """Packs of one lot were taken out by hand, from wherever in the coil they were."""

    product: str
    lot: str
    packs: int
    target: str
    reason: str


@dataclass(frozen=True, slots=True)
class Counted:
    """So many packs were physically there."""

    counted: int


@dataclass(frozen=True, slots=True)
class Claimed:
    """The machine believes in this queue of (lot, packs): compared, never posted."""

    queue: tuple[tuple[str, int], ...]


Entry = Taken | Added | Removed | Counted | Claimed


class Anchored(NamedTuple):
    """An entry at its place, and what caused it."""

    anchor: Anchor
    cause: str
    entry: Entry
    actor: str
    at: Any  # datetime; the fold never looks at it
    received_at: Any = None  # when it is booked later than it came


class Run(NamedTuple):
    """Adjacent packs of one lot."""

    product: str
    lot: str
    packs: int


@dataclass(slots=True)
class SlotBook:
    """What the ledger believes of one slot: the queue, packs owed, and vends whose outcome a count may still settle."""

    dispenser_id: str
    slot: int
    queue: list[Run] = field(default_factory=list)
    owed: list[Run] = field(default_factory=list)
    doubtful: list[tuple[str, Run]] = field(default_factory=list)
    last: tuple[str, str] | None = None

    @property
    def units(self) -> int:
        """Packs in the book; negative when more came out than ever went in."""
        return sum(run.packs for run in self.queue) - sum(run.packs for run in self.owed)

    def account(self, name: str) -> str:
        """Name one of this machine's accounts."""
        return f"{name}/{self.dispenser_id}"

    @property
    def own(self) -> str:
        """The account of this slot."""
        return f"slot/{self.dispenser_id}/{self.slot}"

    def apply(self, entry: Entry) -> list[Posting]:
        """Fold one entry in; returns what it moves between accounts."""
        match entry:
            case Taken():
                return self._take(entry)
            case Added():
                self._load(Run(entry.product, entry.lot, entry.packs))
                return [Posting(entry.source, self.own, entry.product, entry.lot, entry.packs, "refill")]
            case Removed():
                self._remove(entry.product, entry.lot, entry.packs)
                return [Posting(self.own, entry.target, entry.product, entry.lot, entry.packs, entry.reason)]
            case Counted():
                return self._count(entry.counted)
            case Claimed():
                return []
            case _:
                assert_never(entry)

    def _load(self, run: Run) -> None:
        """Behind all others, but before packs of a lot that nobody named: a machine refuses those, and must not get stuck."""
        place = len(self.queue)
        while place and self.queue[place - 1].lot == UNKNOWN:
            place -= 1
        self.queue.insert(place, run)
        self.last = (run.product, run.lot)

    def agrees(self, claim: Claimed) -> bool:
        """Tell whether the machine's claim is what the book says, lot by lot."""
        runs: list[tuple[str, int]] = []
        for run in self.queue:
            if runs and runs[-1][0] == run.lot:
                runs[-1] = (run.lot, runs[-1][1] + run.packs)
            else:
                runs.append((run.lot, run.packs))
        return not self.owed and tuple(runs) == claim.queue

    def _take(self, entry: Taken) -> list[Posting]:
        if self.queue:
            product, lot = self._pop()
        else:
            product, lot = self.last or (entry.product or UNKNOWN, UNKNOWN)
            self._owe(product, lot, 1)
        if entry.into in {"in_doubt", "unverified"}:
            self._doubt(entry.into, product, lot)
        return [Posting(self.own, self.account(entry.into), product, lot, 1, f"vend_{entry.into}")]

    def _doubt(self, name: str, product: str, lot: str) -> None:
        """One run a lot and name: a drop sensor that is broken makes every vend doubtful, and nobody may count for a year.

        A count settles the doubts of one name in their order and never looks across names, so nothing else need be kept.
        """
        for place in reversed(range(len(self.doubtful))):
            other, run = self.doubtful[place]
            if other == name:
                if run[:2] == (product, lot):
                    self.doubtful[place] = name, run._replace(packs=run.packs + 1)
                    return
                break
        self.doubtful.append((name, Run(product, lot, 1)))

    def _pop(self) -> tuple[str, str]:
        product, lot, packs = self.queue[0]
        if packs == 1:
            del self.queue[0]
        else:
            self.queue[0] = Run(product, lot, packs - 1)
        self.last = (product, lot)
        return product, lot

    def _remove(self, product: str, lot: str, packs: int) -> None:
        left = packs
        queue: list[Run] = []
        for run in self.queue:
            taken = min(left, run.packs) if (run.product, run.lot) == (product, lot) else 0
            left -= taken
            if run.packs > taken:
                queue.append(run._replace(packs=run.packs - taken))
            elif taken:
                self.last = (product, lot)
        self.queue = queue
        if left:
            self._owe(product, lot, left)

    def _owe(self, product: str, lot: str, packs: int) -> None:
        """One run a lot, however long a slot gives what nobody knows of: a book is read and written for each of its entries."""
        if self.owed and self.owed[-1][:2] == (product, lot):
            packs += self.owed.pop().packs
        self.owed.append(Run(product, lot, packs))

    def _put_back(self, product: str, lot: str, packs: int) -> None:
        """Packs that never left are the next to come out; those owed are given back first."""
        for place, run in enumerate(self.owed):
            if (run.product, run.lot) == (product, lot):
                settled = min(run.packs, packs)
                packs -= settled
                self.owed[place] = run._replace(packs=run.packs - settled)
        self.owed = [run for run in self.owed if run.packs]
        if packs == 0:
            return
        if self.queue and self.queue[0][:2] == (product, lot):
            packs += self.queue.pop(0).packs
        self.queue.insert(0, Run(product, lot, packs))

    def _count(self, counted: int) -> list[Posting]:
        """Book the difference to what was counted: a surplus is first explained by doubtful vends."""
        postings: list[Posting] = []
        surplus = counted - self.units
        # In doubt before unverified: the motor of an unverified vend is known to have turned.
        for name, run in sorted(self.doubtful, key=lambda doubt: doubt[0]):
            back = max(0, min(run.packs, surplus))
            if back:
                self._put_back(run.product, run.lot, back)
                postings.append(Posting(self.account(name), self.own, run.product, run.lot, back, "settled_by_count"))
                surplus -= back
            if name == "in_doubt" and run.packs > back:
                given, rest = self.account("dispensed"), run.packs - back
                postings.append(Posting(self.account(name), given, run.product, run.lot, rest, "settled_by_count"))
        self.doubtful.clear()
        difference = self.account("count_difference")
        # What was owed is there no longer to be owed: the count has seen the shelf.
        postings += [Posting(difference, self.own, *run, "count_surplus") for run in self.owed]
        self.owed.clear()
        missing = sum(run.packs for run in self.queue) - counted
        if missing < 0:
            product, lot = self.queue[0][:2] if self.queue else self.last or (UNKNOWN, UNKNOWN)
            self._put_back(product, lot, -missing)
            postings.append(Posting(difference, self.own, product, lot, -missing, "count_surplus"))
        while missing > 0:
            # Taken from the front: those would have been the next to come out.
            product, lot, packs = self.queue.pop(0)
            gone = min(missing, packs)
            missing -= gone
            self.last = (product, lot)
            if packs > gone:
                self.queue.insert(0, Run(product, lot, packs - gone))
            postings.append(Posting(self.own, difference, product, lot, gone, "count_shortage"))
        return postings

    def to_json(self) -> dict[str, Any]:
        """Return the book as plain lists."""
        return {
            "queue": [list(run) for run in self.queue],
            "owed": [list(run) for run in self.owed],
            "doubtful": [[name, *run] for name, run in self.doubtful],
            "last": list(self.last) if self.last else None,
        }

    @classmethod
    def from_json(cls, dispenser_id: str, slot: int, value: dict[str, Any]) -> Self:
        """Read back what `to_json` wrote."""
        return cls(
            dispenser_id,
            slot,
            [Run(*run) for run in value["queue"]],
            [Run(*run) for run in value["owed"]],
            [(name, Run(*run)) for name, *run in value["doubtful"]],
            tuple(value["last"]) if value["last"] else None,
        )
