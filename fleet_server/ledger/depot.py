"""The depot's side of the ledger: goods received, picked into a van, and given back. Idempotent by operation."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Literal

from fleet_server.database import Connection
from fleet_server.errors import InputError
from fleet_server.ledger import lot_store, store
from fleet_server.ledger.movements import Movement, Verdict


@dataclass(frozen=True, slots=True)
class StockLine:
    """Packs of one lot."""

    product: str
    lot: str
    packs: int


@dataclass(frozen=True, slots=True)
class LotStock:
    """Packs of one lot on an account."""

    product: str
    lot: str
    expires_on: date | None
    blocked: str | None
    units: int


def receive(
    connection: Connection, operation_id: str, depot_id: str, lines: Sequence[StockLine], actor: str, now: datetime
) -> Verdict:
    """Receive goods from the supplier into the depot; every lot must be registered with its expiry."""
    ends = f"supplier/{depot_id}", f"depot/{depot_id}"
    return _move(connection, operation_id, depot_id, *ends, lines, "receipt", actor, now)


def pick(
    connection: Connection,
    operation_id: str,
    depot_id: str,
    van: str,
    lines: Sequence[StockLine],
    actor: str,
    now: datetime,
) -> Verdict:
    """Move packs from the depot into a van; more than the depot has is an InputError."""
    return _move(connection, operation_id, depot_id, f"depot/{depot_id}", van, lines, "pick", actor, now)


def give_back(
    connection: Connection,
    operation_id: str,
    depot_id: str,
    van: str,
    lines: Sequence[StockLine],
    actor: str,
    now: datetime,
) -> Verdict:
    """Move packs from a van back into the depot. What the van then still has by the book is the tour's difference."""
    return _move(connection, operation_id, depot_id, van, f"depot/{depot_id}", lines, "return", actor, now)


def take_back(
    connection: Connection,
    operation_id: str,
    depot_id: str,
    kind: Literal["receipt", "pick", "return"],
    van: str,
    lines: Sequence[StockLine],
    actor: str,
    entered_at: datetime,
    now: datetime,
) -> Verdict:
    """Book what was done before a restored server forgot it, whatever the depot has by its book: the goods have moved.

    `van` says where a pick went or a return came from; a receipt has none.
    """
    own = f"depot/{depot_id}"
    ends = {"receipt": (f"supplier/{depot_id}", own), "pick": (own, van), "return": (van, own)}
    return _move(
        connection, operation_id, depot_id, *ends[kind], lines, kind, actor, now, at=entered_at, beyond_stock=True
    )


def _move(
    connection: Connection,
    operation_id: str,
    depot_id: str,
    source: str,
    target: str,
    lines: Sequence[StockLine],
    kind: str,
    actor: str,
    now: datetime,
    *,
    at: datetime | None = None,
    beyond_stock: bool = False,
) -> Verdict:
    payload = {"kind": kind, "source": source, "target": target, "lines": [asdict(line) for line in lines]}
    store.lock_depot(connection, depot_id)
    stored = store.read_operation(connection, operation_id)
    if stored is not None:
        return Verdict.REPEATED if stored["payload"] == payload else Verdict.CONFLICTING
    _check(connection, lines, source if kind == "pick" and not beyond_stock else None)
    at = at or now
    store.write_operation(
        connection,
        {
            "operation_id": operation_id,
            "dispenser_id": depot_id,
            "kind": kind,
            "payload": payload,
            "step": 0,
            "entered_at": at,
            "received_at": now,
            "actor": actor,
            "van": target if kind == "pick" else source,
            "state": "booked",
        },
    )
    cause = f"operation:{operation_id}"
    movements = [
        Movement(
            depot_id, f"{cause}#{n}", source, target, line.product, line.lot, line.packs, kind, actor, cause, at, now
        )
        for n, line in enumerate(line for line in lines if line.packs)
    ]
    store.write_movements(connection, movements)
    return Verdict.BOOKED


def _check(connection: Connection, lines: Sequence[StockLine], source: str | None) -> None:
    known = {(row[0], row[1]) for row in lot_store.read_lots(connection)}
    wanted: Counter[tuple[str, str]] = Counter()
    for line in lines:
        if line.packs < 0:
            raise InputError("packs", line.packs, "0 or more")
        if (line.product, line.lot) not in known:
            raise InputError("lot", f"{line.product} {line.lot}", "a registered lot with its expiry date")
        wanted[line.product, line.lot] += line.packs
    if source is None:
        return
    have = {(product, lot): units for product, lot, _, _, units in store.stock_by_lot(connection, source)}
    for key, packs in wanted.items():
        if packs > have.get(key, 0):
            raise InputError("packs", packs, f"at most the {have.get(key, 0)} that {source} has of {' '.join(key)}")


def depot_stock(connection: Connection, depot_id: str) -> list[LotStock]:
    """Return the depot's stock, first expired first within a product."""
    return [LotStock(*row) for row in store.stock_by_lot(connection, f"depot/{depot_id}")]


def van_stock(connection: Connection, van: str) -> list[LotStock]:
    """Return what a van has by the book."""
    return [LotStock(*row) for row in store.stock_by_lot(connection, van)]
