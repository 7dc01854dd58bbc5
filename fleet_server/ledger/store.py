"""Tables of the ledger. Movements are truth; balances and slot books are projections of them."""

from sqlalchemy import BigInteger, CheckConstraint, Column, Date, Index, Integer, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB

from fleet_server.database import metadata
from fleet_server.devices.store import MOMENT

lots = Table(
    "lots",
    metadata,
    Column("product", Text, primary_key=True),
    Column("lot", Text, primary_key=True),
    Column("expires_on", Date, nullable=False),
    Column("blocked", Text),
    Column("created_at", MOMENT, nullable=False),
)

movements = Table(
    "movements",
    metadata,
    # The dispenser, or the depot where no dispenser takes part: first in the key, to partition by.
    Column("place", Text, primary_key=True),
    # Derives from the cause: `{cause}#{n}`.
    Column("id", Text, primary_key=True),
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
)
Index("ix_movements_place_slot", movements.c.place, movements.c.slot)
Index("ix_movements_booked_at", movements.c.booked_at)

balances = Table(
    "balances",
    metadata,
    Column("account", Text, primary_key=True),
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
