"""What happened at one machine, noted by its surroundings: for summaries, and for what a scenario expects."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import date

from pydantic_core import from_json

from device_agent.vending import Plan
from protocol.messages import TAKES_A_PACK, Fact, FaultRaised, OrderOutcome, OrderResult, Vend


@dataclass
class Tally:
    """Counts and extremes of one machine. The first four are kept between runs; the others are of this run."""

    facts: int = 0
    requests: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    events: int = 0

    kinds: Counter[str] = field(default_factory=Counter)
    vends: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    orders: Counter[str] = field(default_factory=Counter)
    requests_of: Counter[date] = field(default_factory=Counter)
    visits: Counter[str] = field(default_factory=Counter)
    streams: set[str] = field(default_factory=set)
    resent: int = 0
    untold: int = 0
    """Packs that fell, and of which only a lost card knew."""
    backlog_max: int = 0
    offline_ms_max: int = 0
    catch_up_ms_max: int = 0
    temperature_c_max: float | None = None
    blocked_dispensed: int = 0
    """Packs of a lot that was blocked when they fell, as far as the machine knew its lots."""
    pulses: int = 0
    """How often the lock was pulsed."""
    acted: Counter[str] = field(default_factory=Counter)
    """How often the board was asked to carry out an order, by its id."""
    _answers: Counter[str] = field(default_factory=Counter)
    _sent_through: dict[str, int] = field(default_factory=dict)
    _offline_since_ms: int | None = None
    _catching_up_since_ms: int | None = None

    def asked(self, day: date) -> None:
        """A visitor asked for a pack."""
        self.requests += 1
        self.requests_of[day] += 1

    def fact(self, fact: Fact, plan: Plan) -> None:
        """The machine recorded a fact, knowing this plan."""
        self.facts += 1
        self.kinds[fact.kind] += 1
        match fact:
            case Vend():
                self.vends[fact.outcome] += 1
                self.refused[fact.reason or ""] += fact.reason is not None
                lot = plan.lots.get((fact.product or "", fact.lot or ""))
                self.blocked_dispensed += fact.outcome in TAKES_A_PACK and lot is not None and lot.blocked
            case FaultRaised():
                self.faults[fact.code] += 1
            case OrderResult():
                self._answers[fact.order_id] += 1
                self.orders["twice"] += self._answers[fact.order_id] > 1
                self.orders["run"] += fact.outcome is OrderOutcome.DONE
                self.orders["late"] += fact.outcome is OrderOutcome.EXPIRED
            case _:
                pass

    def sent(self, batch: bytes) -> tuple[int, int]:
        """The machine sent a batch of facts; returns when it says that was, and the number of its last fact."""
        head, *lines = batch.split(b"\n")
        header = from_json(head)
        stream_id, last = header["stream_id"], header["first_seq"] + len(lines) - 1
        before = self._sent_through.get(stream_id, 0)
        self.resent += max(0, min(before, last) - header["first_seq"] + 1)
        self._sent_through[stream_id] = max(before, last)
        return header["sent_at_ms"], last

    # ------------------------------------------------------------ the connection

    def connected(self, at_ms: int, pending: int) -> None:
        """A session began, with so many facts waiting."""
        self.disconnected_until(at_ms)
        self._offline_since_ms = None
        self.backlog_max = max(self.backlog_max, pending)
        self._catching_up_since_ms = at_ms if pending else None

    def disconnected(self, at_ms: int) -> None:
        """The session ended."""
        self._catching_up_since_ms = None
        if self._offline_since_ms is None:
            self._offline_since_ms = at_ms

    def disconnected_until(self, at_ms: int) -> None:
        """It may have been offline until now."""
        if self._offline_since_ms is not None:
            self.offline_ms_max = max(self.offline_ms_max, at_ms - self._offline_since_ms)

    def acknowledged(self, at_ms: int, pending: int) -> None:
        """The server has more of its facts; so many still wait."""
        if pending == 0 and self._catching_up_since_ms is not None:
            self.catch_up_ms_max = max(self.catch_up_ms_max, at_ms - self._catching_up_since_ms)
            self._catching_up_since_ms = None

    def felt(self, temperature_c: float) -> None:
        """So warm is the cabinet."""
        if self.temperature_c_max is None or temperature_c > self.temperature_c_max:
            self.temperature_c_max = temperature_c
