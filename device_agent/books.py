"""The server's book of the slots, with the machine's own later facts folded on top. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from device_agent.outbox import SlotBook
from protocol.claims import claimable
from protocol.messages import TAKES_A_PACK, Books, Count, Fact, LotPacks, Refill, SlotClaim, Vend

CLAIMED_SLOTS_MAX: Final = 12
CLAIMED_LOTS_MAX: Final = 60
"""In one `stock_level`: with the longest names they stay below the 4 KiB of a fact."""


def refold(books: Books, own: Mapping[int, SlotBook], later: Iterable[Fact]) -> dict[int, SlotBook]:
    """Return every slot's book: the server's queue as of its fact, then what the machine did since."""
    slots: dict[int, SlotBook] = {}
    for claim in books.slots:
        former = own.get(claim.slot) or SlotBook()
        queue = [(lot.lot, lot.packs) for lot in claim.queue]
        slots[claim.slot] = SlotBook(queue, former.blocked_by, former.try_once)
    for fact in later:
        if isinstance(fact, Vend | Count | Refill):
            slots[fact.slot] = folded(slots.get(fact.slot) or SlotBook(), fact)
    return slots


def folded(book: SlotBook, fact: Vend | Count | Refill) -> SlotBook:
    """Return the book after one of the machine's own facts."""
    match fact:
        case Vend():
            return book.less_one() if fact.outcome in TAKES_A_PACK else book
        case Count():
            return counted(book, fact.counted)
        case Refill():
            queue = list(book.queue)
            for lot in fact.removed:
                queue = _without(queue, lot.lot, lot.packs)
            queue += [(lot.lot, lot.packs) for lot in fact.added]
            return SlotBook(queue, book.blocked_by, book.try_once)


def counted(book: SlotBook, packs: int) -> SlotBook:
    """Return the book after a count: what is missing came out first, a surplus is of the next lot to come."""
    missing = sum(n for _, n in book.queue) - packs
    changed = book.copy()
    if missing < 0 and changed.queue:
        lot, there = changed.queue[0]
        changed.queue[0] = (lot, there - missing)
    while missing > 0:
        changed = changed.less_one()
        missing -= 1
    return changed


def _without(queue: list[tuple[str, int]], lot: str, packs: int) -> list[tuple[str, int]]:
    left: list[tuple[str, int]] = []
    for name, there in queue:
        taken = min(packs, there) if name == lot else 0
        packs -= taken
        if there > taken:
            left.append((name, there - taken))
    return left


def claimed(books: Iterable[tuple[int, SlotBook]]) -> Iterator[list[SlotClaim]]:
    """Yield what each `stock_level` says of these slots: adjacent packs of one lot once, and no more lots than one may name."""
    claims: list[SlotClaim] = []
    lots = 0
    for slot, book in books:
        queue = [LotPacks(lot=lot, packs=packs) for lot, packs in claimable(book.queue)]
        if claims and (len(claims) == CLAIMED_SLOTS_MAX or lots + len(queue) > CLAIMED_LOTS_MAX):
            yield claims
            claims, lots = [], 0
        claims.append(SlotClaim(slot=slot, queue=queue))
        lots += len(queue)
    if claims:
        yield claims
