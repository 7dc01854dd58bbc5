"""What tells how well the server is told: how far each machine is known, what could not be read, and what waits to be sent.

Each statement costs a step for every machine, or for every row it returns; none of them grows with history.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import text

from fleet_server.database import Connection

LETTERS_MAX = 2_000
"""So many of the newest dead letters are looked at: a flood of them must not slow down the page that shows it."""


@dataclass(frozen=True, slots=True)
class Reporting:
    """How far a machine is known. `pending` is what it said, at `vitals_at`, that it had yet to report."""

    dispenser_id: str
    name_zh: str
    name_en: str
    last_fact_at: datetime | None
    online: bool | None
    presence_at: datetime | None
    vitals_at: datetime | None
    pending: int | None

    @property
    def known_until(self) -> datetime | None:
        """Everything up to here has arrived: the newest fact, or a later reading that had nothing to report."""
        told = [self.last_fact_at, self.vitals_at if self.pending == 0 else None]
        return max((at for at in told if at is not None), default=None)

    def lag(self, now: datetime) -> timedelta | None:
        """Return how old the oldest fact can be that the machine has and the server has not; None before the first word."""
        return None if self.known_until is None else max(timedelta(), now - self.known_until)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Facts of one machine that are kept aside or gone: how many, the first number of one stream, and when the last came."""

    dispenser_id: str
    stream_no: int
    first_seq: int
    facts: int
    newest_at: datetime


@dataclass(frozen=True, slots=True)
class Letters:
    """Messages of one topic that could not be read, and why the newest could not."""

    topic: str
    messages: int
    newest_at: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """Messages that wait for machines."""

    channel: str
    online: bool
    messages: int
    oldest_at: datetime


def reporting(connection: Connection) -> list[Reporting]:
    """Return every machine, by id."""
    query = text("""
        SELECT d.id AS dispenser_id, d.name_zh, d.name_en, s.last_at AS last_fact_at, p.online, p.changed_at AS presence_at,
               v.at AS vitals_at, CAST(v.reading ->> 'pending_facts' AS bigint) AS pending
        FROM dispensers d
        LEFT JOIN LATERAL (
            SELECT last_at FROM streams WHERE dispenser_id = d.id ORDER BY stream_no DESC LIMIT 1) AS s ON true
        LEFT JOIN presence p ON p.dispenser_id = d.id
        LEFT JOIN vitals v ON v.dispenser_id = d.id
        ORDER BY d.id""")
    return [Reporting(**row) for row in connection.execute(query).mappings()]


def quarantined(connection: Connection, limit: int = 50) -> list[Trouble]:
    """Return machines with facts that no version can read, newest first."""
    return _troubles(connection, "SELECT *, received_at AS came_at, 1 AS facts FROM facts WHERE kind IS NULL", limit)


def forked(connection: Connection, limit: int = 50) -> list[Trouble]:
    """Return machines with facts of another history than the one stored, newest first."""
    return _troubles(connection, "SELECT *, received_at AS came_at, 1 AS facts FROM forked_facts", limit)


def lost(connection: Connection, limit: int = 50) -> list[Trouble]:
    """Return machines with facts that are nowhere any more, newest first."""
    lost_facts = """
        SELECT dispenser_id, stream_no, first_seq AS seq, noted_at AS came_at, last_seq - first_seq + 1 AS facts
        FROM stream_gaps"""
    return _troubles(connection, lost_facts, limit)


def _troubles(connection: Connection, facts: str, limit: int) -> list[Trouble]:
    query = text(f"""
        SELECT dispenser_id, stream_no, min(seq) AS first_seq, CAST(sum(facts) AS bigint) AS facts, max(came_at) AS newest_at
        FROM ({facts}) AS aside GROUP BY 1, 2 ORDER BY newest_at DESC, 1, 2 LIMIT :limit""")  # noqa: S608 - ours
    return [Trouble(**row) for row in connection.execute(query, {"limit": limit}).mappings()]


def dead_letters(connection: Connection, since: datetime, limit: int = 20) -> list[Letters]:
    """Return what could not be read since a moment, by topic, newest first."""
    query = text("""
        SELECT topic, count(*) AS messages, max(received_at) AS newest_at,
               (array_agg(left(reason, 200) ORDER BY received_at DESC))[1] AS reason
        FROM (SELECT topic, received_at, reason FROM dead_letters WHERE received_at >= :since
              ORDER BY received_at DESC LIMIT :most) AS newest
        GROUP BY topic ORDER BY newest_at DESC LIMIT :limit""")
    rows = connection.execute(query, {"since": since, "most": LETTERS_MAX, "limit": limit})
    return [Letters(**row) for row in rows.mappings()]


def waiting(connection: Connection) -> list[Waiting]:
    """Return what waits for machines, apart for those that are connected."""
    query = text("""
        SELECT o.channel, coalesce(p.online, false) AS online, count(*) AS messages, min(o.created_at) AS oldest_at
        FROM outgoing o LEFT JOIN presence p ON p.dispenser_id = o.dispenser_id
        WHERE o.answered_at IS NULL GROUP BY 1, 2 ORDER BY 1, 2""")
    return [Waiting(**row) for row in connection.execute(query).mappings()]
