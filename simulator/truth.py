"""What really happened at a machine, beside what its agent told: itemised differences, books of our own, access, a tally."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from datetime import date
from typing import Any

from device_agent.agent import Agent
from device_agent.machine import State
from device_agent.outbox import Outbox
from device_agent.vending import Plan, refusal_of_stock
from protocol.codec import decode_fact, first_digest, next_digest
from protocol.messages import TAKES_A_PACK, Outcome, Refusal, Vend
from simulator.access import Access
from simulator.boards.virtual_board import VirtualBoard
from simulator.books import Books
from simulator.tally import Tally


class Truth:
    """Kept by the simulation, which sees both sides; nothing here asks a server."""

    def __init__(self, access: Access) -> None:
        self.tally = Tally()
        # Differences that no machine can observe, by slot and cause: physical stock less what the facts say.
        self.unobserved: dict[int, Counter[str]] = {}
        self.books = Books()
        self.access = access
        self._stream_id, self._learnt_seq, self._acked_seq = "", 0, 0
        self._digest = b""

    def begin(self, outbox: Outbox) -> None:
        """Watch an outbox from here on; what it has not kept of what nobody answered may be lost."""
        self._stream_id, self._learnt_seq, self._digest = outbox.stream_id, outbox.last_seq, outbox.last_digest
        self._acked_seq = outbox.acked_through
        self.tally.streams.add(outbox.stream_id)
        self.card_lost([outbox.digest(seq).hex() for seq in range(self._acked_seq + 1, self._learnt_seq + 1)])

    def card_lost(self, kept: Collection[str] = ()) -> None:
        """A card is gone, and with it what nobody answered and no other card has `kept` (digests)."""
        for slot, packs in self.books.card_lost(kept).items():
            if packs:
                self.note(slot, "untold", -packs)

    def settle(self, ends: Iterable[str]) -> None:
        """Take the server's word for how far it has each stream (the digest there), where only the server can know."""
        for slot, packs in self.books.settle(ends).items():
            if packs:
                self.note(slot, "untold", packs)

    def learn(self, outbox: Outbox, board: VirtualBoard, plan: Plan, now_ms: int) -> bool:
        """Take note of new facts, and compare each vend that is reported with what fell; returns whether there were any."""
        if outbox.stream_id != self._stream_id:
            self._stream_id, self._learnt_seq, self._acked_seq = outbox.stream_id, 0, 0
            self._digest = first_digest(outbox.dispenser_id, outbox.stream_id)
            self.tally.streams.add(outbox.stream_id)
            self.card_lost()
        if outbox.acked_through != self._acked_seq:
            self._acked_seq = outbox.acked_through
            self.books.acknowledged(self._acked_seq)
            self.tally.acknowledged(now_ms, outbox.pending)
        if outbox.last_seq == self._learnt_seq:
            return False
        for line in outbox.lines_after(self._learnt_seq):
            self._learnt_seq += 1
            fact = decode_fact(line)
            self.tally.fact(fact, plan)
            before, self._digest = self._digest, next_digest(self._digest, line)
            self.books.fact(self._learnt_seq, self._digest.hex(), before.hex(), fact)
            if isinstance(fact, Vend):
                self._compare(fact, board)
        return True

    def _compare(self, fact: Vend, board: VirtualBoard) -> None:
        turn = board.last
        fell = turn.fell if turn is not None and turn.board_sequence == fact.board_sequence else 0
        reported = 1 if fact.outcome in TAKES_A_PACK else 0
        if fell != reported:
            self.note(fact.slot, _cause(fell, fact.outcome), reported - fell)

    def note(self, slot: int, cause: str, difference: int) -> None:
        """Note packs that are physically there beyond what the ledger can know (negative: missing)."""
        self.unobserved.setdefault(slot, Counter())[cause] += difference
        self.tally.untold += -difference if cause == "untold" else 0

    def counted(self, slot: int, error: int) -> None:
        """A count puts the ledger to what was entered: all former differences of the slot are gone but its own error."""
        self.unobserved[slot] = Counter({"miscount": -error} if error else {})

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values, hours of access aside."""
        return {
            "unobserved": {str(slot): dict(causes) for slot, causes in self.unobserved.items()},
            "books": self.books.to_json(),
            "facts": self.tally.facts,
            "requests": self.tally.requests,
            "outcomes": dict(self.tally.outcomes),
            "events": self.tally.events,
        }

    def restore(self, value: Mapping[str, Any]) -> None:
        """Take back what `to_json` gave."""
        self.unobserved = {int(slot): Counter(causes) for slot, causes in value["unobserved"].items()}
        self.books.restore(value["books"])
        self.tally = Tally(value["facts"], value["requests"], Counter(value["outcomes"]), value["events"])


def _cause(fell: int, outcome: Outcome) -> str:
    if fell > 1:
        return "double_drop"
    if fell == 1:
        return "fell_unseen"
    return "did_not_fall" if outcome is not Outcome.IN_DOUBT else "in_doubt"


def kept_from_serving(agent: Agent, board: VirtualBoard, today: date) -> str | None:
    """What keeps a machine with power and a closed door from giving a condom; None where nothing does."""
    if agent.state is State.OUT_OF_SERVICE:
        return "storage"
    causes: list[str] = []
    for slot, plan in agent.plan.slots.items():
        if not plan.product.startswith("CONDOM"):
            continue
        if slot in board.jammed:
            causes.append("jam")
        elif not board.coils.get(slot):
            causes.append("empty")
        else:
            refusal = refusal_of_stock(agent.plan, plan, agent.book(slot), today)
            if refusal is None:
                return None
            causes.append("jam" if refusal is Refusal.FAULT else str(refusal))
    return Counter(causes).most_common(1)[0][0] if causes else "unplanned"
