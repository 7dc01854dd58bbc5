"""Holes in streams: facts that a machine says it has no more, and that this server has never had, or lost."""

from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, Column, Integer, LargeBinary, Table, Text, select

from fleet_server.database import Connection, metadata
from fleet_server.devices.store import MOMENT

stream_gaps = Table(
    "stream_gaps",
    metadata,
    Column("dispenser_id", Text, primary_key=True),
    Column("stream_no", Integer, primary_key=True),
    Column("first_seq", BigInteger, primary_key=True),
    Column("last_seq", BigInteger, nullable=False),
    # The machine's own word for the digest of `last_seq`: nobody else can know it.
    Column("digest", LargeBinary, nullable=False),
    Column("noted_at", MOMENT, nullable=False),
    CheckConstraint("first_seq <= last_seq", name="first_to_last"),
)


@dataclass(frozen=True, slots=True)
class StreamGap:
    """Facts `first_seq` to `last_seq` of a stream are nowhere; the chain goes on from `digest`."""

    dispenser_id: str
    stream_no: int
    first_seq: int
    last_seq: int
    digest: bytes
    noted_at: datetime


def keep_gap(connection: Connection, gap: StreamGap) -> None:
    """Note a hole."""
    connection.execute(stream_gaps.insert().values(asdict(gap)))


def list_gaps(connection: Connection, dispenser_id: str | None = None) -> list[StreamGap]:
    """Return holes, of one machine or of all, in the order of their streams."""
    query = select(stream_gaps)
    if dispenser_id is not None:
        query = query.where(stream_gaps.c.dispenser_id == dispenser_id)
    query = query.order_by(stream_gaps.c.dispenser_id, stream_gaps.c.stream_no, stream_gaps.c.first_seq)
    return [StreamGap(**row) for row in connection.execute(query).mappings()]


def is_in_gap(connection: Connection, dispenser_id: str, stream_no: int, first: int, last: int) -> bool:
    """Tell whether any of the facts `first` to `last` lies in a hole."""
    query = select(stream_gaps.c.first_seq).where(
        stream_gaps.c.dispenser_id == dispenser_id,
        stream_gaps.c.stream_no == stream_no,
        stream_gaps.c.first_seq <= last,
        stream_gaps.c.last_seq >= first,
    )
    return connection.execute(query.limit(1)).first() is not None
