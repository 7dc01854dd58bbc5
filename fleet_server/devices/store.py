"""Tables of the machines and their streams."""

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
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from fleet_server.database import metadata

MOMENT = DateTime(timezone=True)

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
)

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
    Column("received_at", MOMENT, nullable=False),
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
    Column("hour", MOMENT, primary_key=True),
    Column("reading", JSONB, nullable=False),
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

server_state = Table(
    "server_state",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", JSONB, nullable=False),
)
