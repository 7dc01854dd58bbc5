"""Tables of the clock and of the runs of jobs, and the lock that lets one replica run them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from sqlalchemy import Column, Float, Index, Integer, Table, Text, select, text

from fleet_server.clock import ClockState
from fleet_server.database import Connection, Database, metadata
from fleet_server.devices.store import MOMENT

JOBS_LOCK = 0x6A6F6273
EARLIEST = datetime(1, 1, 2, tzinfo=UTC)

clock_state = Table(
    "clock_state",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("mode", Text, nullable=False),
    Column("base", MOMENT, nullable=False),
    Column("wall", MOMENT, nullable=False),
    Column("speed", Float, nullable=False),
)

job_runs = Table(
    "job_runs",
    metadata,
    Column("job", Text, primary_key=True),
    Column("due_at", MOMENT, primary_key=True),
    Column("began_at", MOMENT, nullable=False),
    Column("ended_at", MOMENT),
    Column("error", Text),
)
Index("ix_job_runs_failed", job_runs.c.due_at, postgresql_where=job_runs.c.error.is_not(None))


def read_clock(connection: Connection, wall: datetime) -> ClockState:
    """Return the clock's state; without one, the wall clock."""
    row = connection.execute(select(clock_state)).first()
    return ClockState("system", wall, wall) if row is None else ClockState(row.mode, row.base, row.wall, row.speed)


def write_clock(connection: Connection, state: ClockState) -> None:
    """Keep the clock's state."""
    query = text("""
        INSERT INTO clock_state (id, mode, base, wall, speed) VALUES (1, :mode, :base, :wall, :speed)
        ON CONFLICT (id) DO UPDATE SET mode = excluded.mode, base = excluded.base, wall = excluded.wall, speed = excluded.speed""")
    connection.execute(query, asdict(state))


def last_due(connection: Connection, jobs: Sequence[str]) -> dict[str, datetime]:
    """Return the newest due time of each of these jobs that has been begun."""
    # Asked every second: one step into the key's index for each job, instead of a walk through all runs.
    query = text("""
        SELECT job, (SELECT max(due_at) FROM job_runs WHERE job_runs.job = names.job) AS at
        FROM unnest(CAST(:jobs AS text[])) AS names(job)""")
    return {row.job: row.at for row in connection.execute(query, {"jobs": list(jobs)}) if row.at is not None}


def note_run(connection: Connection, job: str, due_at: datetime, error: str | None = None) -> bool:
    """Note one run of a job, in whose transaction it stands or falls; False when it was noted before."""
    query = text("""
        INSERT INTO job_runs (job, due_at, began_at, ended_at, error) VALUES (:job, :due_at, :due_at, :due_at, :error)
        ON CONFLICT DO NOTHING""")
    return connection.execute(query, {"job": job, "due_at": due_at, "error": error}).rowcount > 0


@dataclass(frozen=True, slots=True)
class FailedRun:
    """The newest failure of a job, how many there were, and whether it has run well since."""

    job: str
    failures: int
    newest_at: datetime
    error: str
    over: bool


def failed_runs(connection: Connection, since: datetime) -> list[FailedRun]:
    """Return the jobs that failed since a moment, newest first."""
    query = text("""
        SELECT job, count(*) AS failures, max(due_at) AS newest_at, (array_agg(error ORDER BY due_at DESC))[1] AS error,
               (SELECT error IS NULL FROM job_runs AS newest WHERE newest.job = failed.job AND ended_at IS NOT NULL
                ORDER BY newest.due_at DESC LIMIT 1) AS over
        FROM job_runs AS failed WHERE error IS NOT NULL AND due_at >= :since GROUP BY job ORDER BY newest_at DESC""")
    return [FailedRun(**row) for row in connection.execute(query, {"since": since}).mappings()]


def hold_jobs(connection: Connection) -> None:
    """Wait for the one lock under which jobs run and the clock moves, and hold it until the transaction ends."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": JOBS_LOCK})


@contextmanager
def jobs_lock_if_free(database: Database) -> Iterator[Connection | None]:
    """Hold that lock for one transaction after another of the connection that is yielded; None where somebody else holds it."""
    with database.open() as connection:
        with connection.begin():
            ask = text("SELECT pg_try_advisory_lock(:key)")
            held = bool(connection.execute(ask, {"key": JOBS_LOCK}).scalar())
        try:
            yield connection if held else None
        finally:
            # A connection that broke holds nothing any more.
            if held and not connection.invalidated:
                connection.rollback()
                with connection.begin():
                    connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": JOBS_LOCK})


def forget(
    connection: Connection, table: Literal["vitals_history", "dead_letters", "job_runs"], column: str, before: datetime
) -> None:
    """Drop a table's rows from before a moment, a day of them at a time: no statement grows with what has piled up."""
    oldest = text(f"SELECT min({column}) FROM {table} WHERE {column} >= :since")  # noqa: S608 - constants of ours
    drop = text(f"DELETE FROM {table} WHERE {column} >= :since AND {column} < :until")  # noqa: S608
    since = connection.execute(oldest, {"since": EARLIEST}).scalar_one()
    while since is not None and since < before:
        until = min(since + timedelta(days=1), before)
        connection.execute(drop, {"since": since, "until": until})
        since = connection.execute(oldest, {"since": until}).scalar_one()


def hours_reported(connection: Connection, since: datetime, until: datetime) -> list[tuple[str, int, datetime]]:
    """Return (dispenser_id, hours with a reading, when its first stream began) of every machine that ever told anything."""
    query = text("""
        SELECT s.dispenser_id, coalesce(v.hours, 0) AS hours, s.began_at
        FROM (SELECT dispenser_id, min(began_at) AS began_at FROM streams GROUP BY dispenser_id) AS s
        LEFT JOIN (SELECT dispenser_id, count(*) AS hours FROM vitals_history
                   WHERE hour >= :since AND hour < :until GROUP BY dispenser_id) AS v USING (dispenser_id)""")
    rows = connection.execute(query, {"since": since, "until": until})
    return [(row.dispenser_id, row.hours, row.began_at) for row in rows]


def presence_to_note(connection: Connection, code: str, away_since: datetime) -> list[tuple[str, bool, datetime]]:
    """Return (dispenser_id, online, since when) of machines away since before a moment without this fault, or back with it."""
    query = text("""
        SELECT p.dispenser_id, p.online, p.changed_at FROM presence AS p
        LEFT JOIN faults AS f ON f.dispenser_id = p.dispenser_id AND f.slot = 0 AND f.code = :code AND f.cleared_at IS NULL
        WHERE p.online AND f.id IS NOT NULL OR NOT p.online AND f.id IS NULL AND p.changed_at < :away_since
        ORDER BY p.dispenser_id""")
    rows = connection.execute(query, {"code": code, "away_since": away_since})
    return [(row.dispenser_id, row.online, row.changed_at) for row in rows]


def machines_with_all(connection: Connection, codes: Sequence[str], within: timedelta) -> list[str]:
    """Return the machines at which all of these faults are open and began so near to each other."""
    query = text("""
        SELECT dispenser_id FROM faults WHERE cleared_at IS NULL AND slot = 0 AND code = ANY(:codes)
        GROUP BY dispenser_id
        HAVING count(*) = :signs AND max(opened_at) - min(opened_at) <= :within ORDER BY dispenser_id""")
    values = {"codes": list(codes), "signs": len(codes), "within": within}
    return list(connection.execute(query, values).scalars())


def doors_last_opened(connection: Connection) -> dict[str, datetime]:
    """Return when each machine's door was last opened, as far as it has told."""
    query = text("SELECT dispenser_id, max(opened_at) AS at FROM door_sessions GROUP BY dispenser_id")
    return {row.dispenser_id: row.at for row in connection.execute(query)}


def visits_without_door(connection: Connection, since: datetime, until: datetime) -> list[tuple[str, str, datetime]]:
    """Return (dispenser_id, visit_id, closed at) of closed visits without a door session, at machines that reported then and since."""
    query = text("""
        SELECT dispenser_id, visit_id, changed_at FROM stops
        WHERE state = 'closed' AND changed_at > :since AND changed_at <= :until
          AND NOT EXISTS (SELECT FROM door_sessions AS d WHERE d.dispenser_id = stops.dispenser_id
                          AND d.opened_at BETWEEN changed_at - interval '12 hours' AND changed_at + interval '10 minutes')
          AND (SELECT count(*) FROM vitals_history AS v WHERE v.dispenser_id = stops.dispenser_id
               AND hour BETWEEN date_trunc('hour', changed_at) - interval '1 hour' AND changed_at + interval '1 hour') = 3
        ORDER BY changed_at""")
    rows = connection.execute(query, {"since": since, "until": until})
    return [(row.dispenser_id, row.visit_id, row.changed_at) for row in rows]


def is_untouched(connection: Connection) -> bool:
    """Tell whether no machine has ever told anything."""
    return connection.execute(text("SELECT 1 FROM streams LIMIT 1")).first() is None


def forget_runs(connection: Connection) -> None:
    """Forget when jobs ran: the clock has been set to where a history begins."""
    connection.execute(text("DELETE FROM job_runs"))
