"""Tables of the ledger and every statement on them. Movements are truth; balances and slot books are projections."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, Final

from pydantic_core import from_json, to_json
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ColumnElement,
    Index,
    Integer,
    Table,
    Text,
    cast,
    func,
    select,
    text,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert

from fleet_server.bulk import Insert, column, insert_together, run, unnest_insert
from fleet_server.database import Connection, metadata
from fleet_server.devices.store import MOMENT
from fleet_server.ledger.fold import Anchor, SlotBook
from fleet_server.ledger.lot_store import lots
from fleet_server.ledger.movements import DoorOpening, DoorSession, Movement

movements = Table(
    "movements",
    metadata,
    # The dispenser, or the depot where no dispenser takes part: first in the key, to partition by.
    Column("place", Text, primary_key=True),
    # Derives from the cause: `{cause}#{n}`; compared byte by byte, so that those of one cause stand together.
    Column("id", Text(collation="C"), primary_key=True),
    Column("source", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("product", Text, nullable=False),
    Column("lot", Text, nullable=False),
    Column("units", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", Text, nullable=False),
    # `fact:{dispenser}/{stream_no}/{seq}` or `operation:{operation_id}`.
    Column("cause", Text, nullable=False),
    Column("at", MOMENT, nullable=False),
    Column("booked_at", MOMENT, nullable=False),
    # The slot whose fold made it, and its place in the machine's stream; NULL outside machines.
    Column("slot", Integer),
    Column("stream_no", Integer),
    Column("seq", BigInteger),
    Column("step", Integer),
    CheckConstraint("units > 0", name="units_positive"),
    postgresql_partition_by="HASH (place)",
)
Index("ix_movements_place_slot", movements.c.place, movements.c.slot)
Index("ix_movements_booked_at", movements.c.booked_at)
Index(
    "ix_movements_at",
    movements.c.at,
    postgresql_using="brin",
    postgresql_with={"pages_per_range": 16, "autosummarize": "on"},
)

balances = Table(
    "balances",
    metadata,
    Column("account", Text(collation="C"), primary_key=True),
    Column("product", Text, primary_key=True),
    Column("lot", Text, primary_key=True),
    Column("units", BigInteger, nullable=False),
)

slot_books = Table(
    "slot_books",
    metadata,
    Column("dispenser_id", Text, primary_key=True),
    Column("slot", Integer, primary_key=True),
    Column("book", JSONB, nullable=False),
    # The anchor of the last entry folded in.
    Column("stream_no", Integer, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("step", Integer, nullable=False),
)

door_sessions = Table(
    "door_sessions",
    metadata,
    Column("dispenser_id", Text, primary_key=True),
    Column("stream_no", Integer, primary_key=True),
    Column("opened_seq", BigInteger, primary_key=True),
    Column("session", Text, nullable=False),
    Column("opened_at", MOMENT, nullable=False),
    Column("closed_seq", BigInteger),
    Column("closed_at", MOMENT),
)
Index("ix_door_sessions_session", door_sessions.c.dispenser_id, door_sessions.c.session)

# What phones and desks enter: kept whole, whatever becomes of it.
operations = Table(
    "operations",
    metadata,
    Column("operation_id", Text, primary_key=True),
    Column("dispenser_id", Text, nullable=False),
    Column("visit_id", Text),
    Column("slot", Integer),
    Column("kind", Text, nullable=False),
    Column("payload", JSONB, nullable=False),
    Column("session", Text),
    Column("step", Integer, nullable=False),
    Column("entered_at", MOMENT, nullable=False),
    Column("received_at", MOMENT, nullable=False),
    Column("actor", Text, nullable=False),
    Column("van", Text, nullable=False),
    # waiting for its door session, or booked at this anchor.
    Column("state", Text, nullable=False),
    Column("stream_no", Integer),
    Column("seq", BigInteger),
)
Index("ix_operations_dispenser_id_slot", operations.c.dispenser_id, operations.c.slot)
Index(
    "ix_operations_waiting", operations.c.dispenser_id, operations.c.session, postgresql_where=text("state = 'waiting'")
)
Index("ix_operations_visit_id", operations.c.visit_id, postgresql_where=operations.c.visit_id.is_not(None))
Index(
    "ix_operations_counted",
    operations.c.dispenser_id,
    operations.c.slot,
    text("least(entered_at, received_at)"),
    postgresql_where=text("kind = 'count'"),
)


# ---------------------------------------------------------------- movements and balances


MOVEMENT_COLUMNS: Final = {
    "place": "text", "id": "text", "source": "text", "target": "text", "product": "text", "lot": "text",
    "units": "int4", "reason": "text", "actor": "text", "cause": "text", "at": "timestamptz",
    "booked_at": "timestamptz", "slot": "int4", "stream_no": "int4", "seq": "int8", "step": "int4",
}  # fmt: skip


def write_movements(
    connection: Connection, rows: Sequence[Movement], books: Iterable[tuple[SlotBook, Anchor]] = ()
) -> None:
    """Append movements, bring the balances along, and keep books as they now stand; an id that exists already is a defect and raises."""
    change: dict[tuple[str, str, str], int] = defaultdict(int)
    for _, _, source, target, product, lot, units, *_ in rows:
        change[source, product, lot] -= units
        change[target, product, lot] += units
    inserts = [
        Insert(
            "movements",
            MOVEMENT_COLUMNS,
            [(*row[:13], *(row.anchor or (None, None, None))) for row in rows],
            can_copy=True,
        ),
        # In sorted order, so that two transactions that touch the same depot cannot deadlock.
        Insert(
            "balances",
            {"account": "text", "product": "text", "lot": "text", "units": "int8"},
            [(*key, units) for key, units in sorted(change.items()) if units],
            "ON CONFLICT (account, product, lot) DO UPDATE SET units = balances.units + excluded.units",
        ),
        _books(books),
    ]
    insert_together(connection, inserts)


def movements_of_slot(connection: Connection, dispenser_id: str, slot: int) -> list[Movement]:
    """Return everything that the fold of one slot ever posted, in no order."""
    query = select(movements).where(movements.c.place == dispenser_id, movements.c.slot == slot)
    return [_movement(row) for row in connection.execute(query).mappings()]


def recent_movements(connection: Connection, account: str | None, limit: int) -> list[Movement]:
    """Return the movements booked last, of one account or of all."""
    query = select(movements)
    if account is not None:
        query = query.where((movements.c.source == account) | (movements.c.target == account))
    query = query.order_by(movements.c.booked_at.desc(), movements.c.id.desc()).limit(limit)
    return [_movement(row) for row in connection.execute(query).mappings()]


def _movement(row: Any) -> Movement:
    names = (name for name in Movement._fields if name != "anchor")
    anchor = None if row["seq"] is None else Anchor(row["stream_no"], row["seq"], row["step"])
    return Movement(**{name: row[name] for name in names}, anchor=anchor)


def lock_depot(connection: Connection, depot_id: str) -> None:
    """Let one transaction at a time move a depot's goods, until it ends: what is checked must still be so when it is booked."""
    connection.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended(:depot, 0))"), {"depot": f"depot/{depot_id}"}
    )


def lock_desired(connection: Connection) -> None:
    """Let one transaction at a time say what machines are to be told of lots and slots, until it ends."""
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('desired', 0))"))


def read_balances(connection: Connection, account_prefix: str | None, limit: int) -> list[tuple[str, str, str, int]]:
    """Return balances that are not zero: (account, product, lot, units), by account."""
    query = select(balances).where(balances.c.units != 0)
    if account_prefix is not None:
        query = query.where(balances.c.account.startswith(account_prefix, autoescape=True))
    query = query.order_by(balances.c.account, balances.c.product, balances.c.lot).limit(limit)
    return [tuple(row) for row in connection.execute(query)]


def stock_by_lot(connection: Connection, account: str) -> list[tuple[str, str, date | None, str | None, int]]:
    """Return the lots on an account, first expired first: (product, lot, expires_on, blocked, units)."""
    query = (
        select(balances.c.product, balances.c.lot, lots.c.expires_on, lots.c.blocked, balances.c.units)
        .outerjoin(lots, (lots.c.product == balances.c.product) & (lots.c.lot == balances.c.lot))
        .where(balances.c.account == account, balances.c.units != 0)
        .order_by(balances.c.product, lots.c.expires_on, balances.c.lot)
    )
    return [tuple(row) for row in connection.execute(query)]


def dispensed_per_slot(
    connection: Connection, since: datetime, until: datetime, zone: str
) -> list[tuple[str, int, str, date, int]]:
    """Return packs delivered per slot and local day, net of rebookings: (dispenser, slot, product, day, units)."""
    query = text("""
        SELECT place, slot, product, CAST(at AT TIME ZONE :zone AS date) AS day,
               sum(CASE WHEN target = 'dispensed/' || place THEN units ELSE -units END) AS units
        FROM movements
        WHERE at >= :since AND at < :until AND slot IS NOT NULL AND reason IN ('vend_dispensed', 'rebooked')
          AND (target = 'dispensed/' || place OR source = 'dispensed/' || place)
        GROUP BY place, slot, product, day ORDER BY place, slot, product, day""")
    rows = connection.execute(query, {"zone": zone, "since": since, "until": until})
    return [(row.place, row.slot, row.product, row.day, int(row.units)) for row in rows]


# ---------------------------------------------------------------- slot books


def read_books(
    connection: Connection, keys: Iterable[tuple[str, int]] | None = None, dispenser_ids: Iterable[str] | None = None
) -> dict[tuple[str, int], tuple[SlotBook, Anchor]]:
    """Return books with the anchor of their last entry, by (dispenser_id, slot)."""
    # As text: the driver's own reading of JSON costs as much as all the rest of it.
    columns = "dispenser_id, slot, book::text, stream_no, seq, step"
    values: list[bytes] = []
    query = f"SELECT {columns} FROM slot_books"  # noqa: S608 - names of ours
    if keys is not None:
        # One parameter a column, however many keys: a long IN list costs more to write down than to answer.
        query += " JOIN unnest(%b::text[], %b::int[]) AS k(dispenser_id, slot) USING (dispenser_id, slot)"
        dispensers, slots = tuple(zip(*keys, strict=True)) or ((), ())
        values += [column("text", dispensers), column("int4", slots)]
    if dispenser_ids is not None:
        query += " WHERE dispenser_id = ANY(%b::text[])"
        values.append(column("text", list(dispenser_ids)))
    return {
        (row[0], row[1]): (SlotBook.from_json(row[0], row[1], from_json(row[2])), Anchor(*row[3:]))
        for row in run(connection, query, values)
    }


def write_books(connection: Connection, rows: Iterable[tuple[SlotBook, Anchor]]) -> None:
    """Keep books as they now stand."""
    insert_together(connection, [_books(rows)])


def _books(rows: Iterable[tuple[SlotBook, Anchor]]) -> Insert:
    return Insert(
        "slot_books",
        {"dispenser_id": "text", "slot": "int4", "book": "jsonb", "stream_no": "int4", "seq": "int8", "step": "int4"},
        [(book.dispenser_id, book.slot, to_json(book.to_json()).decode(), *anchor) for book, anchor in rows],
        """ON CONFLICT (dispenser_id, slot) DO UPDATE SET
            book = excluded.book, stream_no = excluded.stream_no, seq = excluded.seq, step = excluded.step""",
    )


# ---------------------------------------------------------------- door sessions and operations


def open_doors(connection: Connection, rows: Sequence[DoorOpening]) -> None:
    """Note door sessions that began."""
    columns = {
        "dispenser_id": "text", "stream_no": "int4", "opened_seq": "int8", "session": "text",
        "opened_at": "timestamptz",
    }  # fmt: skip
    values = [(r.dispenser_id, r.stream_no, r.seq, r.session, r.at) for r in rows]
    unnest_insert(connection, "door_sessions", columns, values, on_conflict="ON CONFLICT DO NOTHING")


def close_doors(connection: Connection, rows: Sequence[DoorOpening]) -> None:
    """Note the ends of door sessions: `seq` and `at` of each row are those of its end."""
    if not rows:
        return
    # A session ends with the first of these that comes after its opening.
    statement = """
        UPDATE door_sessions AS d SET closed_seq = c.seq, closed_at = c.at
        FROM (SELECT DISTINCT ON (o.dispenser_id, o.stream_no, o.opened_seq)
                     o.dispenser_id, o.stream_no, o.opened_seq, c.seq, c.at
              FROM unnest(%b::text[], %b::int[], %b::bigint[], %b::text[], %b::timestamptz[])
                   AS c(dispenser_id, stream_no, seq, session, at)
              JOIN door_sessions o USING (dispenser_id, stream_no, session)
              WHERE o.opened_seq < c.seq AND o.closed_seq IS NULL
              ORDER BY o.dispenser_id, o.stream_no, o.opened_seq, c.seq) AS c
        WHERE d.dispenser_id = c.dispenser_id AND d.stream_no = c.stream_no AND d.opened_seq = c.opened_seq"""
    values = [(r.dispenser_id, r.stream_no, r.seq, r.session, r.at) for r in rows]
    connection.exec_driver_sql(statement, tuple(list(column) for column in zip(*values, strict=True)))


def door_sessions_of(
    connection: Connection, dispenser_id: str, *, session: str | None = None, limit: int = 20
) -> list[DoorSession]:
    """Return one machine's door sessions, newest first."""
    query = select(door_sessions).where(door_sessions.c.dispenser_id == dispenser_id)
    if session is not None:
        query = query.where(door_sessions.c.session == session)
    query = query.order_by(door_sessions.c.stream_no.desc(), door_sessions.c.opened_seq.desc()).limit(limit)
    return [DoorSession(**row) for row in connection.execute(query).mappings()]


def among(table: Table, sessions: Iterable[tuple[str, str]]) -> ColumnElement[bool]:
    """Whether a row is of one of these (dispenser_id, session); however many, they are two parameters."""
    ids, codes = zip(*sessions, strict=True)
    arrays = (func.unnest(cast(list(column), ARRAY(Text))) for column in (ids, codes))
    return tuple_(table.c.dispenser_id, table.c.session).in_(select(*arrays))


def newest_doors(connection: Connection, codes: Iterable[tuple[str, str]]) -> dict[tuple[str, str], DoorSession]:
    """Return the newest door session of each (dispenser_id, session code) that is known."""
    wanted = list(codes)
    if not wanted:
        return {}
    query = select(door_sessions).where(among(door_sessions, wanted))
    query = query.order_by(door_sessions.c.stream_no, door_sessions.c.opened_seq)
    rows = connection.execute(query).mappings()
    return {(row["dispenser_id"], row["session"]): DoorSession(**row) for row in rows}


def read_operations(connection: Connection, operation_ids: Sequence[str]) -> list[Any]:
    """Return those of these operations that are stored."""
    query = select(operations).where(operations.c.operation_id.in_(operation_ids))
    return list(connection.execute(query).mappings())


def read_operation(connection: Connection, operation_id: str) -> Any:
    """Return one stored operation, or None."""
    query = select(operations).where(operations.c.operation_id == operation_id)
    return connection.execute(query).mappings().first()


def write_operations(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Keep operations, whole."""
    columns = {
        "operation_id": "text", "dispenser_id": "text", "visit_id": "text", "slot": "int4", "kind": "text",
        "payload": "jsonb", "session": "text", "step": "int4", "entered_at": "timestamptz", "received_at": "timestamptz",
        "actor": "text", "van": "text", "state": "text", "stream_no": "int4", "seq": "int8",
    }  # fmt: skip
    values = [[row.get(name) for name in columns if name != "payload"] for row in rows]
    place = list(columns).index("payload")
    for value, row in zip(values, rows, strict=True):
        value.insert(place, json.dumps(row["payload"]))
    unnest_insert(connection, "operations", columns, values)


def write_operation(connection: Connection, row: Mapping[str, Any]) -> None:
    """Keep an operation, whole."""
    connection.execute(insert(operations).values(dict(row)))


def booked_operations(connection: Connection, dispenser_id: str, slot: int) -> list[Any]:
    """Return the booked operations of one slot."""
    query = select(operations).where(
        operations.c.dispenser_id == dispenser_id, operations.c.slot == slot, operations.c.state == "booked"
    )
    return list(connection.execute(query).mappings())


def operations_of_visit(connection: Connection, visit_id: str) -> list[Any]:
    """Return what was entered in one visit, in its order."""
    query = select(operations).where(operations.c.visit_id == visit_id)
    return list(connection.execute(query.order_by(operations.c.step, operations.c.operation_id)).mappings())


def differences_of(connection: Connection, dispenser_id: str, operation_ids: Sequence[str]) -> dict[str, int]:
    """Return by how many packs each of these counts changed its slot's book."""
    # By the range of ids that begin with the cause: by the cause itself a machine's whole history would be read.
    query = text("""
        SELECT cause, (
            SELECT sum(CASE WHEN target LIKE 'slot/%' THEN units WHEN source LIKE 'slot/%' THEN -units ELSE 0 END)
            FROM movements WHERE place = :place AND id >= causes.cause || '#' AND id < causes.cause || '$') AS units
        FROM unnest(CAST(:causes AS text[])) AS causes(cause)""")
    causes = [f"operation:{operation_id}" for operation_id in operation_ids]
    rows = connection.execute(query, {"place": dispenser_id, "causes": causes})
    return {row.cause.partition(":")[2]: int(row.units) for row in rows if row.units is not None}
