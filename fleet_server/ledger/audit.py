"""The audit: recomputes every balance twice, from movements and from facts and operations, and the chain of every stream.

Nothing here uses the code that posts (`fold`, `entries`, `booking`): a slot is replayed pack by pack, from the stored
bytes of facts and the stored payloads of operations, by rules written a second time. A mistake has to be made twice to
stay hidden.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from fleet_server.database import Connection
from fleet_server.ledger import audit_store
from fleet_server.ledger.audit_chain import Told, walk
from fleet_server.ledger.audit_store import Anchor, Cause

Key = tuple[str, str, str]
"""(account, product, lot)."""
End = tuple[Cause, int | None, str, tuple[str, str]]
"""One end of movements: their cause, the slot whose book made them, the account, and (product, lot)."""
DETAILS_MAX: Final = 20
"""So many differences of one kind in one place are told; more would say no more."""

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
    for place, events in audit_store.histories(connection):
        replay.place(place, events)
    differences = [
        *_compare("balances against movements", moved, projected),
        *_compare("movements against facts and operations", replay.accounts, moved),
        *(Difference("fact or operation that can be read", name, "", "", 1, 0) for name in replay.unreadable),
        *_causes(connection, replay.seals),
        *_books(replay.coils, audit_store.books(connection)),
        *_streams(connection),
        *_rows(connection),
    ]
    return AuditReport(
        audit_store.count(connection, "movements"), replay.facts, replay.operations, len(moved), differences
    )


def _compare(check: str, expected: Mapping[Key, int], found: Mapping[Key, int]) -> Iterable[Difference]:
    for key in sorted(set(expected) | set(found)):
        if expected.get(key, 0) != found.get(key, 0):
            yield Difference(check, *key, expected.get(key, 0), found.get(key, 0))


def _causes(connection: Connection, expected: Counter[str]) -> Iterable[Difference]:
    """Compare what each fact and each operation moved, when, and by whom: what sums do not show."""
    found: Counter[str] = Counter()
    for place, move in audit_store.moves(connection):
        for key, units in ends(move):
            found[place] += units * seal(key)
    for place in sorted(place for place in expected.keys() | found.keys() if expected[place] != found[place]):
        # Only here a history is held whole.
        replay = Replay(details=Counter())
        replay.place(place, audit_store.history(connection, place))
        moved: Counter[End] = Counter()
        for _, move in audit_store.moves(connection, place):
            for key, units in ends(move):
                moved[key] += units
        told = replay.details or Counter()
        differing = [key for key in told.keys() | moved.keys() if told[key] != moved[key]]
        for key in sorted(differing, key=repr)[:DETAILS_MAX]:
            cause, slot, account, pack = key
            words = f"{cause.name} by {cause.actor} at {cause.at.isoformat()}, slot {slot}: {account}"
            yield Difference("what each fact and operation moved", words, *pack, told[key], moved[key])


def ends(move: audit_store.Move) -> tuple[tuple[End, int], tuple[End, int]]:
    """Return what a movement takes from its source and brings to its target; what was rebooked cancels itself."""
    source, target = ((move.cause, move.slot, account, move.pack) for account in (move.source, move.target))
    return (source, -move.units), (target, move.units)


def seal(key: End) -> int:
    """Return a number that no other end has, in this process. Not the tuple's hash: differences of those hardly depend on the cause."""
    (name, anchor, at, actor), slot, account, pack = key
    return hash(f"{name} {anchor} {at} {actor} {slot} {account} {pack}")


def _streams(connection: Connection) -> Iterable[Difference]:
    """Walk the stored bytes of every stream."""
    seen = 0
    for stream in audit_store.streams(connection):
        account = f"stream {stream.dispenser_id}/{stream.stream_no}"
        told = Told()
        walked = walk(stream, told.passing(audit_store.lines(connection, stream.dispenser_id, stream.stream_no)))
        seen += walked.facts
        if walked.through_seq != stream.through_seq:
            yield Difference("seq contiguous", account, "", "", stream.through_seq, walked.through_seq)
        elif walked.digest != stream.digest:
            yield Difference("facts that the chain vouches for", account, "", "", stream.through_seq, 0)
        elif walked.astray:
            yield Difference("facts and holes beyond the cursor", account, "", "", 0, walked.astray)
        for number in told.misnamed[:DETAILS_MAX]:
            yield Difference("kind of a fact", f"{account}/{number}", "", "", 0, 1)
        doors = audit_store.doors(connection, stream.dispenser_id, stream.stream_no)
        if doors != told.doors:
            yield Difference("door sessions that facts tell of", account, "", "", len(told.doors), len(doors))
    stored = audit_store.count(connection, "facts")
    if seen != stored:
        yield Difference("facts of a stream that is known", "facts", "", "", stored, seen)


def _rows(connection: Connection) -> Iterable[Difference]:
    for check, query in audit_store.ROWS.items():
        for name in audit_store.wrong_rows(connection, query)[:DETAILS_MAX]:
            yield Difference(check, name, "", "", 0, 1)


def _books(
    coils: Mapping[tuple[str, int], "Coil"], books: Iterable[tuple[tuple[str, int], dict[str, Any], Anchor]]
) -> Iterable[Difference]:
    """Compare the books, on which everything that comes next is booked: the order of the lots in each coil, and all else."""
    missing = dict(coils)
    for slot, book, last in books:
        coil = missing.pop(slot, None) or Coil()
        account = f"slot/{slot[0]}/{slot[1]}"
        for check, expected, found in (
            ("order of the lots in the coil", coil.packs, _packs(book["queue"])),
            ("packs owed", coil.short, _packs(book["owed"])),
            ("vends that a count may settle", _by_name(coil.open_vends), _by_name(_vends(book["doubtful"]))),
        ):
            if expected != found:
                yield Difference(check, account, "", "", len(expected), len(found))
        if not coil.packs and coil.latest != (tuple(book["last"]) if book["last"] else None):
            yield Difference("last lot of an empty coil", account, *(coil.latest or ("", "")), 1, 0)
        if coil.last != last:
            yield Difference("last entry of the book", account, "", "", (coil.last or (0, 0, 0))[1], last[1])
    for dispenser, number in sorted(missing):
        yield Difference("book of the slot", f"slot/{dispenser}/{number}", "", "", 1, 0)


def _packs(runs: Iterable[tuple[str, str, int]]) -> list[tuple[str, str]]:
    return [(product, lot) for product, lot, packs in runs for _ in range(packs)]


def _vends(doubtful: Iterable[tuple[str, str, str, int]]) -> list[tuple[str, tuple[str, str]]]:
    return [(name, (product, lot)) for name, product, lot, packs in doubtful for _ in range(packs)]


def _by_name(vends: Iterable[tuple[str, tuple[str, str]]]) -> list[tuple[str, tuple[str, str]]]:
    """Those of one name in their order: between names a book keeps none, and a count asks for none."""
    return sorted(vends, key=lambda vend: vend[0])


@dataclass
class Coil:
    """Packs of one slot, one by one, front first; `short` are those that came out beyond the book."""

    packs: list[tuple[str, str]] = field(default_factory=list)
    short: list[tuple[str, str]] = field(default_factory=list)
    open_vends: list[tuple[str, tuple[str, str]]] = field(default_factory=list)
    latest: tuple[str, str] | None = None
    last: Anchor | None = None
    """The anchor of its last entry."""


class Replay:
    """Plays the history of every place once more.

    `seals` tell by place what each cause moved, as sums of hashes: equal where that is equal. `details` tell it in full.
    """

    def __init__(self, details: Counter[End] | None = None) -> None:
        self.accounts: Counter[Key] = Counter()
        self.coils: dict[tuple[str, int], Coil] = defaultdict(Coil)
        self.seals: Counter[str] = Counter()
        self.details = details
        self.unreadable: list[str] = []
        self.facts = 0
        self.operations = 0

    def move(self, source: str, target: str, pack: tuple[str, str], units: int = 1) -> None:
        self.accounts[source, *pack] -= units
        self.accounts[target, *pack] += units
        for key, moved in ends(audit_store.Move(self._cause, self._slot, source, target, pack, units)):
            self.seals[self._place] += moved * seal(key)
            if self.details is not None:
                self.details[key] += moved

    def place(self, place: str, events: Iterable[audit_store.Event]) -> None:
        """Replay one place's events, which come in the order of their anchors."""
        self._place = place
        for value, self._cause in events:
            self._slot: int | None = None
            try:
                if isinstance(value, bytes):
                    self.facts += 1
                    self._fact(place, json.loads(value))
                else:
                    self.operations += 1
                    self._operation(place, value)
            except (ValueError, LookupError, TypeError, AttributeError):
                # Somebody wrote it anew: what it moves is missing, and so it is told.
                self.unreadable.append(self._cause.name)

    def _coil(self, place: str, slot: int) -> Coil:
        coil = self.coils[place, slot]
        self._slot, coil.last = slot, self._cause.anchor
        return coil

    def _fact(self, place: str, fact: dict[str, Any]) -> None:
        slot: int = fact.get("slot", 0)  # a stock_level speaks of several
        match fact["kind"]:
            case "stock_level":
                for claim in fact["slots"]:
                    self._coil(place, claim["slot"])
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
        coil = self._coil(place, slot)
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
        coil = self._coil(place, slot)
        behind = len(coil.packs)
        while behind and coil.packs[behind - 1][1] == "?":
            behind -= 1
        # Packs without a name stay last where they are last, and in front where a count has put them back there.
        coil.packs = coil.packs[:behind] + [pack] * packs + coil.packs[behind:]
        coil.latest = pack
        self.move(source, f"slot/{place}/{slot}", pack, packs)

    def _unload(self, place: str, slot: int, pack: tuple[str, str], packs: int, target: str) -> None:
        coil = self._coil(place, slot)
        for _ in range(packs):
            if pack in coil.packs:
                coil.packs.remove(pack)
                if pack not in coil.packs:
                    coil.latest = pack
            else:
                coil.short.append(pack)
        self.move(f"slot/{place}/{slot}", target, pack, packs)

    def _count(self, place: str, slot: int, counted: int) -> None:
        coil, own = self._coil(place, slot), f"slot/{place}/{slot}"
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
