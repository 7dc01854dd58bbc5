"""The audit: recomputes every balance twice, from movements and from facts and operations, and the chain of every stream.

Nothing here uses the code that posts (`fold`, `entries`, `booking`): a slot is replayed pack by pack, from the stored
bytes of facts and the stored payloads of operations, by rules written a second time. A mistake has to be made twice to
stay hidden.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fleet_server.database import Connection
from fleet_server.ledger import audit_store
from fleet_server.ledger.audit_chain import walk

Key = tuple[str, str, str]
"""(account, product, lot)."""

LEAVES = {"delivered": "dispensed", "unverified": "unverified", "in_doubt": "in_doubt"}
LOST = {"expired": "expired", "damaged": "damaged", "damp": "damaged", "stolen": "stolen"}


@dataclass(frozen=True, slots=True)
class Difference:
    """An account on which two ways of counting disagree. `check` names them."""

    check: str
    account: str
    product: str
    lot: str
    expected: int
    found: int

    def __str__(self) -> str:
        name = f"{self.account} {self.product} {self.lot}".rstrip()
        return f"{self.check}: {name}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What was audited and every difference found; clean when there is none."""

    movements: int
    facts: int
    operations: int
    accounts: int
    differences: list[Difference] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)


def audit(connection: Connection) -> AuditReport:
    """Recompute everything; takes a consistent picture of the database as of its beginning."""
    audit_store.freeze(connection)
    projected = Counter(audit_store.balances(connection))
    moved = Counter(audit_store.moved(connection))
    replay = Replay()
    for place, rows in audit_store.histories(connection):
        replay.place(place, rows)
    differences = [
        *_compare("balances against movements", moved, projected),
        *_compare("movements against facts and operations", replay.accounts, moved),
        *_books(replay, audit_store.books(connection)),
        *_streams(connection),
    ]
    return AuditReport(
        audit_store.count(connection, "movements"), replay.facts, replay.operations, len(moved), differences
    )


def _compare(check: str, expected: Mapping[Key, int], found: Mapping[Key, int]) -> Iterable[Difference]:
    for key in sorted(set(expected) | set(found)):
        if expected.get(key, 0) != found.get(key, 0):
            yield Difference(check, *key, expected.get(key, 0), found.get(key, 0))


def _streams(connection: Connection) -> Iterable[Difference]:
    """Walk the stored bytes of every stream."""
    seen = 0
    for stream in audit_store.streams(connection):
        account = f"stream {stream.dispenser_id}/{stream.stream_no}"
        walked = walk(stream, audit_store.lines(connection, stream.dispenser_id, stream.stream_no))
        seen += walked.facts
        if walked.through_seq != stream.through_seq:
            yield Difference("seq contiguous", account, "", "", stream.through_seq, walked.through_seq)
        elif walked.digest != stream.digest:
            yield Difference("facts that the chain vouches for", account, "", "", stream.through_seq, 0)
    stored = audit_store.count(connection, "facts")
    if seen != stored:
        yield Difference("facts of a stream that is known", "facts", "", "", stored, seen)


def _books(replay: "Replay", books: Iterable[tuple[str, int, dict[str, Any]]]) -> Iterable[Difference]:
    """Compare the order of the lots in each coil, which balances do not show."""
    for dispenser, slot, book in books:
        held = [(product, lot) for product, lot, packs in book["queue"] for _ in range(packs)]
        packs = replay.coils[dispenser, slot].packs
        if held != packs:
            account = f"slot/{dispenser}/{slot}"
            yield Difference("order of the lots in the coil", account, "", "", len(packs), len(held))


@dataclass
class Coil:
    """Packs of one slot, one by one, front first; `short` are those that came out beyond the book."""

    packs: list[tuple[str, str]] = field(default_factory=list)
    short: list[tuple[str, str]] = field(default_factory=list)
    open_vends: list[tuple[str, tuple[str, str]]] = field(default_factory=list)
    latest: tuple[str, str] | None = None


class Replay:
    """Plays the history of every place once more."""

    def __init__(self) -> None:
        self.accounts: Counter[Key] = Counter()
        self.coils: dict[tuple[str, int], Coil] = defaultdict(Coil)
        self.facts = 0
        self.operations = 0

    def move(self, source: str, target: str, pack: tuple[str, str], units: int = 1) -> None:
        self.accounts[source, *pack] -= units
        self.accounts[target, *pack] += units

    def place(self, place: str, rows: Iterable[tuple[str, Any]]) -> None:
        """Replay one place's events, which come in the order of their anchors."""
        for kind, value in rows:
            if kind == "fact":
                self.facts += 1
                self._fact(place, json.loads(value))
            else:
                self.operations += 1
                self._operation(place, value)

    def _fact(self, place: str, fact: dict[str, Any]) -> None:
        slot = fact["slot"]
        match fact["kind"]:
            case "vend":
                became = LEAVES.get(fact["outcome"])
                if became:
                    became = "test" if fact.get("test") and became == "dispensed" else became
                    self._vend(place, slot, became, fact.get("product"))
            case "count":
                self._count(place, slot, fact["counted"])
            case "refill":
                for lot in fact.get("removed", []):
                    self._unload(place, slot, (fact["product"], lot["lot"]), lot["packs"], f"unassigned/{place}")
                for lot in fact.get("added", []):
                    self._load(place, slot, (fact["product"], lot["lot"]), lot["packs"], f"unassigned/{place}")

    def _operation(self, place: str, payload: dict[str, Any]) -> None:
        match payload["kind"]:
            case "receipt" | "pick" | "return":
                for line in payload["lines"]:
                    pack = (line["product"], line["lot"])
                    self.move(payload["source"], payload["target"], pack, line["packs"])
            case "count":
                self._count(place, payload["slot"], payload["counted"])
            case "refill":
                pack = (payload["product"], payload["lot"])
                self._load(place, payload["slot"], pack, payload["packs"], payload["van"])
            case "remove":
                account = LOST.get(payload["reason"])
                tour = payload["van"].split("/", 1)[1]
                target = f"{account}/{place}" if account else f"quarantine/{tour}"
                pack = (payload["product"] or "?", payload["lot"])
                self._unload(place, payload["slot"], pack, payload["packs"], target)

    def _vend(self, place: str, slot: int, became: str, product: str | None) -> None:
        coil = self.coils[place, slot]
        if coil.packs:
            pack = coil.packs.pop(0)
            coil.latest = pack
        else:
            pack = coil.latest or (product or "?", "?")
            coil.short.append(pack)
        if became in {"in_doubt", "unverified"}:
            coil.open_vends.append((became, pack))
        self.move(f"slot/{place}/{slot}", f"{became}/{place}", pack)

    def _load(self, place: str, slot: int, pack: tuple[str, str], packs: int, source: str) -> None:
        coil = self.coils[place, slot]
        behind = len(coil.packs)
        while behind and coil.packs[behind - 1][1] == "?":
            behind -= 1
        # Packs without a name stay last where they are last, and in front where a count has put them back there.
        coil.packs = coil.packs[:behind] + [pack] * packs + coil.packs[behind:]
        coil.latest = pack
        self.move(source, f"slot/{place}/{slot}", pack, packs)

    def _unload(self, place: str, slot: int, pack: tuple[str, str], packs: int, target: str) -> None:
        coil = self.coils[place, slot]
        for _ in range(packs):
            if pack in coil.packs:
                coil.packs.remove(pack)
                if pack not in coil.packs:
                    coil.latest = pack
            else:
                coil.short.append(pack)
        self.move(f"slot/{place}/{slot}", target, pack, packs)

    def _count(self, place: str, slot: int, counted: int) -> None:
        coil, own = self.coils[place, slot], f"slot/{place}/{slot}"
        more = counted - (len(coil.packs) - len(coil.short))
        for became in ("in_doubt", "unverified"):
            for pack in [pack for name, pack in coil.open_vends if name == became]:
                if more > 0:
                    more -= 1
                    self._give_back(coil, pack)
                    self.move(f"{became}/{place}", own, pack)
                elif became == "in_doubt":
                    self.move(f"in_doubt/{place}", f"dispensed/{place}", pack)
        coil.open_vends.clear()
        difference = f"count_difference/{place}"
        for pack in coil.short:
            self.move(difference, own, pack)
        coil.short.clear()
        while len(coil.packs) < counted:
            pack = coil.packs[0] if coil.packs else coil.latest or ("?", "?")
            coil.packs.insert(0, pack)
            self.move(difference, own, pack)
        while len(coil.packs) > counted:
            pack = coil.packs.pop(0)
            coil.latest = pack
            self.move(own, difference, pack)

    def _give_back(self, coil: Coil, pack: tuple[str, str]) -> None:
        if pack in coil.short:
            coil.short.remove(pack)
        else:
            coil.packs.insert(0, pack)
