"""Tables of the machines and their streams, and every statement on them."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
    select,
    text,
    tuple_,
)
from sqlalchemy.dialects.postgresql import JSONB, insert

from fleet_server.bulk import column, run
from fleet_server.database import Connection, metadata
from fleet_server.devices.machines import (
    Announcement,
    Cursor,
    Dispenser,
    Planogram,
    Presence,
    Product,
    StoredFact,
)
from fleet_server.errors import NotFoundError
from protocol.messages import SlotPlan

MOMENT = DateTime(timezone=True)

LAST_MS = 253_402_300_799_000
"""The end of the year 9999: no time can be written beyond."""

products = Table(
    "products",
    metadata,
    Column("code", Text, primary_key=True),
    Column("name_zh", Text, nullable=False),
    Column("name_en", Text, nullable=False),
    Column("unit_zh", Text, nullable=False),
    Column("unit_en", Text, nullable=False),
    Column("pieces_per_unit", Integer, nullable=False),
    Column("cyp_divisor_pieces", Integer),
    Column("shelf_life_months", Integer, nullable=False),
)

dispensers = Table(
    "dispensers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name_zh", Text, nullable=False),
    Column("name_en", Text, nullable=False),
    Column("street_zh", Text, nullable=False),
    Column("street_en", Text, nullable=False),
    Column("street_code", Text, nullable=False),
    Column("site_type", Text, nullable=False),
    Column("placement", Text, nullable=False),
    Column("latitude", Float, nullable=False),
    Column("longitude", Float, nullable=False),
    Column("opens_hour", Integer, nullable=False, server_default=text("0")),
    Column("closes_hour", Integer, nullable=False, server_default=text("24")),
    Column("depot_id", Text, nullable=False),
    Column("population_estimate", Integer),
    Column("migrant_share_estimate", Float),
    Column("note", Text, nullable=False, server_default=text("''")),
)

slots = Table(
    "slots",
    metadata,
    Column("dispenser_id", Text, primary_key=True),
    Column("slot", Integer, primary_key=True),
    Column("product", Text, nullable=False),
    Column("capacity", Integer, nullable=False),
    Column("enabled", Boolean, nullable=False, server_default=text("true")),
)

# The cursor of each stream. Streams of a machine are numbered in the order in which they began.
streams = Table(
    "streams",
    metadata,
    Column("dispenser_id", Text, primary_key=True),
    Column("stream_no", Integer, primary_key=True),
    Column("stream_id", Text, nullable=False),
    Column("through_seq", BigInteger, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("began_at", MOMENT, nullable=False),
    Column("received_at", MOMENT, nullable=False),
    # The last fact's time, for bounding the untrusted time of the next: corrected wall time, boot, monotonic ms.
    Column("last_at", MOMENT),
    Column("last_boot_id", Text),
    Column("last_mono_ms", BigInteger),
    UniqueConstraint("dispenser_id", "stream_id"),
)

facts = Table(
    "facts",
    metadata,
    Column("dispenser_id", Text, primary_key=True),
    Column("stream_no", Integer, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("line", LargeBinary, nullable=False),
    # NULL kind: quarantined, no version can read the line.
    Column("kind", Text),
    Column("at", MOMENT),
    Column("corrected_at", MOMENT, nullable=False),
    Column("received_at", MOMENT, nullable=False),
    Column("quarantine_reason", Text),
    postgresql_partition_by="HASH (dispenser_id)",
)
Index("ix_facts_quarantined", facts.c.received_at, postgresql_where=facts.c.kind.is_(None))

forked_facts = Table(
    "forked_facts",
    metadata,
    Column("dispenser_id", Text, primary_key=True),
    Column("stream_no", Integer, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("line_digest", LargeBinary, primary_key=True),
    Column("line", LargeBinary, nullable=False),
    Column("received_at", MOMENT, nullable=False),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("topic", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("reason", Text, nullable=False),
    Column("received_at", MOMENT, nullable=False, index=True),
)

presence = Table(
    "presence",
    metadata,
    Column("dispenser_id", Text, primary_key=True),
    Column("stream_id", Text, nullable=False),
    Column("session", BigInteger, nullable=False),
    Column("online", Boolean, nullable=False),
    Column("changed_at", MOMENT, nullable=False),
)

vitals = Table(
    "vitals",
    metadata,
    Column("dispenser_id", Text, primary_key=True),
    Column("at", MOMENT, nullable=False),
    Column("reading", JSONB, nullable=False),
)

# Downsampled: the last reading of each hour.
vitals_history = Table(
    "vitals_history",
    metadata,
    Column("dispenser_id", Text, primary_key=True),
    Column("hour", MOMENT, primary_key=True, index=True),
    Column("reading", JSONB, nullable=False),
    postgresql_partition_by="HASH (dispenser_id)",
)

# Everything that is to be sent to a machine. A feature writes the row in its own transaction; ingest sends and keeps it.
outgoing = Table(
    "outgoing",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("dispenser_id", Text, nullable=False),
    Column("channel", Text, nullable=False),
    # Order id, or the version of a desired state or of books: what the answer names.
    Column("key", Text, nullable=False),
    Column("payload", JSONB, nullable=False),
    Column("created_at", MOMENT, nullable=False),
    Column("expires_at", MOMENT),
    Column("sent_stream_id", Text),
    Column("sent_session", BigInteger),
    Column("sent_at", MOMENT),
    Column("answered_at", MOMENT),
    Column("answer", Text),
    Column("answer_detail", Text),
    UniqueConstraint("dispenser_id", "channel", "key"),
)
Index("ix_outgoing_unanswered", outgoing.c.dispenser_id, postgresql_where=outgoing.c.answered_at.is_(None))
Index(
    "ix_outgoing_newest",
    outgoing.c.dispenser_id,
    outgoing.c.channel,
    text("CAST(key AS bigint)"),
    postgresql_where=text("channel <> 'orders'"),
)
Index("ix_outgoing_orders", outgoing.c.key, postgresql_where=outgoing.c.channel == "orders")

server_state = Table(
    "server_state",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", JSONB, nullable=False),
)


# ---------------------------------------------------------------- reading


def list_dispensers(connection: Connection, after: str = "", limit: int | None = None) -> list[Dispenser]:
    """List machines by id: all, or so many of those after one."""
    query = select(dispensers).where(dispensers.c.id > after).order_by(dispensers.c.id).limit(limit)
    return [Dispenser(**row) for row in connection.execute(query).mappings()]


def get_dispenser(connection: Connection, dispenser_id: str) -> Dispenser:
    """Return one machine; raises NotFoundError."""
    row = connection.execute(select(dispensers).where(dispensers.c.id == dispenser_id)).mappings().first()
    if row is None:
        raise NotFoundError("dispenser_id", dispenser_id, "the id of a registered dispenser")
    return Dispenser(**row)


def list_products(connection: Connection) -> list[Product]:
    """List all products, by code."""
    return [Product(**row) for row in connection.execute(select(products).order_by(products.c.code)).mappings()]


def planogram(connection: Connection, dispenser_ids: Sequence[str] | None = None) -> Planogram:
    """Return the planned slots of each machine, by slot number."""
    query = select(slots).order_by(slots.c.dispenser_id, slots.c.slot)
    if dispenser_ids is not None:
        query = query.where(slots.c.dispenser_id.in_(dispenser_ids))
    plans: Planogram = {}
    for row in connection.execute(query):
        plan = SlotPlan(slot=row.slot, product=row.product, capacity=row.capacity, enabled=row.enabled)
        plans.setdefault(row.dispenser_id, []).append(plan)
    return plans


def all_presence(connection: Connection, dispenser_ids: Sequence[str] | None = None) -> dict[str, Presence]:
    """Return the last announced session of each machine that ever announced one."""
    query = select(presence)
    if dispenser_ids is not None:
        query = query.where(presence.c.dispenser_id.in_(dispenser_ids))
    return {row["dispenser_id"]: Presence(**row) for row in connection.execute(query).mappings()}


def current_session(connection: Connection, dispenser_id: str) -> Presence | None:
    """Return the last announced session of one machine."""
    row = connection.execute(select(presence).where(presence.c.dispenser_id == dispenser_id)).mappings().first()
    return Presence(**row) if row else None


def latest_vitals(connection: Connection, dispenser_id: str) -> dict[str, Any]:
    """Return a machine's last reading, its moment under `at`; empty where there is none."""
    row = connection.execute(select(vitals).where(vitals.c.dispenser_id == dispenser_id)).first()
    return {"at": row.at, **row.reading} if row else {}


def last_fact_at(connection: Connection, dispenser_ids: list[str] | None = None) -> dict[str, datetime]:
    """Return the corrected time of each machine's last fact."""
    query = text("""
        SELECT DISTINCT ON (dispenser_id) dispenser_id, last_at FROM streams
        WHERE last_at IS NOT NULL AND (CAST(:ids AS text[]) IS NULL OR dispenser_id = ANY(:ids))
        ORDER BY dispenser_id, stream_no DESC""")
    return {row.dispenser_id: row.last_at for row in connection.execute(query, {"ids": dispenser_ids})}


def facts_page(
    connection: Connection, dispenser_id: str, *, before: tuple[int, int] | None = None, limit: int = 50
) -> list[StoredFact]:
    """Return the newest facts of one machine before (stream_no, seq), newest first."""
    query = select(facts).where(facts.c.dispenser_id == dispenser_id)
    if before is not None:
        query = query.where(tuple_(facts.c.stream_no, facts.c.seq) < before)
    query = query.order_by(facts.c.stream_no.desc(), facts.c.seq.desc()).limit(limit)
    return [StoredFact(**row) for row in connection.execute(query).mappings()]


def facts_of_kinds(connection: Connection, dispenser_id: str, kinds: Sequence[str]) -> Iterator[StoredFact]:
    """Yield the facts of these kinds of one machine, in the order of its streams."""
    query = select(facts).where(facts.c.dispenser_id == dispenser_id, facts.c.kind.in_(kinds))
    for row in connection.execute(query.order_by(facts.c.stream_no, facts.c.seq)).mappings():
        yield StoredFact(**row)


def lines_between(connection: Connection, dispenser_id: str, stream_no: int, first: int, last: int) -> list[bytes]:
    """Return the stored bytes of facts `first` to `last` of one stream."""
    query = select(facts.c.line).where(
        facts.c.dispenser_id == dispenser_id, facts.c.stream_no == stream_no, facts.c.seq.between(first, last)
    )
    return list(connection.execute(query.order_by(facts.c.seq)).scalars())


def cursors(connection: Connection, dispenser_ids: Sequence[str]) -> list[Cursor]:
    """Return the cursors of all streams of these machines, oldest stream first."""
    query = (
        f"SELECT {', '.join(Cursor._fields)} FROM streams WHERE dispenser_id = ANY(%b) ORDER BY dispenser_id, stream_no"  # noqa: S608 - names of ours
    )
    return [Cursor(*row) for row in run(connection, query, [column("text", dispenser_ids)])]


def recent_cursors(connection: Connection, dispenser_ids: Sequence[str], streams_max: int) -> list[Cursor]:
    """Return the cursors of the newest streams of these machines, oldest stream first: a machine may have begun any number."""
    query = f"""
        SELECT {", ".join(f"s.{name}" for name in Cursor._fields)} FROM unnest(%b) AS ids(id) CROSS JOIN LATERAL (
            SELECT * FROM streams WHERE dispenser_id = ids.id ORDER BY stream_no DESC LIMIT {streams_max:d}) AS s
        ORDER BY s.dispenser_id, s.stream_no"""  # noqa: S608 - names of ours
    return [Cursor(*row) for row in run(connection, query, [column("text", dispenser_ids)])]


def cursor_of(connection: Connection, dispenser_id: str, stream_id: str) -> Cursor | None:
    """Return the cursor of one stream, if there is such a stream."""
    query = f"SELECT {', '.join(Cursor._fields)} FROM streams WHERE dispenser_id = %s AND stream_id = %s"  # noqa: S608 - names of ours
    return next((Cursor(*row) for row in run(connection, query, [dispenser_id, stream_id])), None)


def lock(connection: Connection, dispenser_ids: Iterable[str]) -> set[str]:
    """Lock these machines' streams and stock until the transaction ends, in sorted order; returns those that exist.

    Everything that moves a machine's cursor or its stock holds this lock, so that the two never race.
    """
    query = "SELECT id FROM dispensers WHERE id = ANY(%b) ORDER BY id FOR NO KEY UPDATE"
    return {dispenser_id for (dispenser_id,) in run(connection, query, [column("text", sorted(set(dispenser_ids)))])}


def server_epoch(connection: Connection) -> int:
    """Return the epoch of this server: 1 until a restore from a backup begins another."""
    found = run(connection, "SELECT value FROM server_state WHERE key = 'epoch'")
    return int(found[0][0]) if found else 1


def read_state(connection: Connection, key: str) -> Any:
    """Return a value of the server's own state, or None."""
    return connection.execute(text("SELECT value FROM server_state WHERE key = :key"), {"key": key}).scalar()


# ---------------------------------------------------------------- writing


def write_state(connection: Connection, key: str, value: Any) -> None:
    """Keep a value of the server's own state."""
    query = text("""
        INSERT INTO server_state (key, value) VALUES (:key, CAST(:value AS jsonb))
        ON CONFLICT (key) DO UPDATE SET value = excluded.value""")
    connection.execute(query, {"key": key, "value": json.dumps(value)})


def add_products(connection: Connection, items: Sequence[Product]) -> None:
    """Register products; those that exist stay as they are."""
    connection.execute(insert(products).on_conflict_do_nothing(), [asdict(item) for item in items])


def add_dispensers(connection: Connection, items: Sequence[Dispenser]) -> None:
    """Register machines; those that exist stay as they are."""
    connection.execute(insert(dispensers).on_conflict_do_nothing(), [asdict(item) for item in items])


def add_slots(connection: Connection, dispenser_id: str, plans: Sequence[SlotPlan]) -> None:
    """Plan slots of a machine; those that exist stay as they are."""
    rows = [{"dispenser_id": dispenser_id, **plan.model_dump()} for plan in plans]
    connection.execute(insert(slots).on_conflict_do_nothing(), rows)


def announce(connection: Connection, announcements: Sequence[Announcement]) -> int:
    """Record what machines announced, in its order; a late will of an ended session changes nothing.

    Returns how many changed something.
    """
    # One statement cannot change a row twice: the second word of a machine goes into a second one, and so on.
    turns: list[list[Announcement]] = []
    spoken: Counter[str] = Counter()
    for announcement in announcements:
        turn = spoken[announcement.dispenser_id]
        if turn == len(turns):
            turns.append([])
        turns[turn].append(announcement)
        spoken[announcement.dispenser_id] += 1
    return sum(_announce_once(connection, turn) for turn in turns)


def _announce_once(connection: Connection, announcements: Sequence[Announcement]) -> int:
    statement = """
        INSERT INTO presence AS p (dispenser_id, stream_id, session, online, changed_at)
        SELECT a.* FROM unnest(%b::text[], %b::text[], %b::bigint[], %b::boolean[], %b::timestamptz[])
               AS a(id, stream_id, session, online, at) JOIN dispensers USING (id) ORDER BY id
        ON CONFLICT (dispenser_id) DO UPDATE
        SET stream_id = excluded.stream_id, session = excluded.session, online = excluded.online,
            changed_at = excluded.changed_at
        WHERE CASE WHEN p.stream_id = excluded.stream_id
                   THEN (excluded.session, NOT excluded.online) > (p.session, NOT p.online)
                   ELSE excluded.online END"""
    rows = [(a.dispenser_id, a.stream_id, a.session, a.online, a.received_at) for a in announcements]
    return connection.exec_driver_sql(statement, tuple(list(column) for column in zip(*rows, strict=True))).rowcount
