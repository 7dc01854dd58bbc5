"""Facts and operations as entries of a slot's book. Pure."""

from typing import Any, Final, Literal

from fleet_server.ledger.fold import UNKNOWN, Added, Anchor, Anchored, Claimed, Counted, Entry, Removed, Taken
from protocol.messages import Count, Fact, LotPacks, Outcome, Refill, StockLevel, Vend

STOCK_KINDS = ("vend", "count", "refill")
"""The kinds of facts that move stock."""

WRITTEN_OFF = {"expired": "expired", "damaged": "damaged", "damp": "damaged", "stolen": "stolen"}
"""Reasons of a removal that write packs off at the machine; packs removed for others go to quarantine."""


def entries_of_fact(dispenser_id: str, fact: Fact) -> list[tuple[int, Entry]]:
    """Return what a fact means for the machine's slots: (slot, entry)."""
    match fact:
        case Vend():
            into = _INTO.get(fact.outcome)
            if into is None:
                return []
            test = fact.test and into == "dispensed"
            return [(fact.slot, Taken("test" if test else into, fact.product, fact.lot))]
        case Count():
            return [(fact.slot, Counted(fact.counted))]
        case Refill():
            # Nobody said which van: an account of its own, for a dispatcher to look at.
            van = f"unassigned/{dispenser_id}"
            removed: list[Entry] = [
                Removed(fact.product, lot.lot, lot.packs, van, "refill_at_machine") for lot in fact.removed
            ]
            added: list[Entry] = [Added(fact.product, lot.lot, lot.packs, van) for lot in fact.added]
            return [(fact.slot, entry) for entry in [*removed, *added]]
        case StockLevel():
            return [(claim.slot, Claimed(_runs(claim.queue))) for claim in fact.slots]
        case _:
            return []


# Everything else (a jam, a fault of the motor, a refusal) leaves the pack where it is.
_INTO: Final[dict[Outcome, Literal["dispensed", "unverified", "in_doubt"]]] = {
    Outcome.DELIVERED: "dispensed",
    Outcome.UNVERIFIED: "unverified",
    Outcome.IN_DOUBT: "in_doubt",
}


def _runs(queue: list[LotPacks]) -> tuple[tuple[str, int], ...]:
    runs: list[tuple[str, int]] = []
    for lot in queue:
        if runs and runs[-1][0] == lot.lot:
            runs[-1] = (lot.lot, runs[-1][1] + lot.packs)
        else:
            runs.append((lot.lot, lot.packs))
    return tuple(runs)


def entry_of_operation(dispenser_id: str, payload: dict[str, Any]) -> Entry:
    """Return what a phone's or desk's operation means for its slot."""
    van: str = payload["van"]
    match payload["kind"]:
        case "count":
            return Counted(payload["counted"])
        case "refill":
            return Added(payload["product"], payload["lot"], payload["packs"], van)
        case "remove":
            reason: str = payload["reason"]
            account = WRITTEN_OFF.get(reason)
            target = f"{account}/{dispenser_id}" if account else f"quarantine/{van.partition('/')[2]}"
            return Removed(payload["product"] or UNKNOWN, payload["lot"], payload["packs"], target, f"removed_{reason}")
        case kind:
            raise ValueError(f"kind = {kind!r}: expected count, refill or remove")


def anchored_fact(
    dispenser_id: str, stream_no: int, seq: int, fact: Fact, at: Any, received_at: Any = None
) -> list[tuple[tuple[str, int], Anchored]]:
    """Return a fact's entries at their anchor, by (dispenser_id, slot)."""
    cause, actor = f"fact:{dispenser_id}/{stream_no}/{seq}", f"dispenser:{dispenser_id}"
    anchor = Anchor(stream_no, seq, 0)
    return [
        ((dispenser_id, slot), Anchored(anchor, cause, entry, actor, at, received_at))
        for slot, entry in entries_of_fact(dispenser_id, fact)
    ]


def anchored_operation(row: Any, stream_no: int, seq: int, received_at: Any = None) -> Anchored:
    """Return a stored operation's entry, anchored at the door session that opened at `seq`."""
    entry = entry_of_operation(row["dispenser_id"], row["payload"])
    # Steps are counted from 1: step 0 is the door opening itself.
    anchor = Anchor(stream_no, seq, 1 + row["step"])
    return Anchored(anchor, f"operation:{row['operation_id']}", entry, row["actor"], row["entered_at"], received_at)
