"""When jobs run: one table, by the fleet's clock, once each, on one replica. The one door to APScheduler."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, NamedTuple

import structlog
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from fleet_server.clock import LOCAL, Clock
from fleet_server.database import Connection, Database, DatabaseError, is_disconnect
from fleet_server.jobs import finding, store, work
from fleet_server.logs import Outage

log = structlog.get_logger()

Work = Callable[[Connection, datetime], None]
"""A job's function: connection, due time."""


class Job(NamedTuple):
    """When (local time) what runs. With `latest_only`, times that were missed together run once, as the newest."""

    name: str
    trigger: Any
    function: Work
    latest_only: bool = False


def jobs_of(kept: work.Kept) -> list[Job]:
    """Return the table of jobs of an installation that keeps for so long what expires."""
    return [
        Job("watch_expiry", CronTrigger(hour=0, minute=10, timezone=LOCAL), work.watch_expiry),
        Job("book_lost_doors", CronTrigger(hour=0, minute=15, timezone=LOCAL), work.book_lost_doors),
        Job("watch_counts", CronTrigger(hour=0, minute=20, timezone=LOCAL), work.watch_counts),
        Job("watch_reports", CronTrigger(hour=0, minute=30, timezone=LOCAL), finding.watch_reports),
        Job("watch_doors", CronTrigger(hour=0, minute=40, timezone=LOCAL), finding.watch_doors),
        Job("forget", CronTrigger(hour=3, minute=30, timezone=LOCAL), partial(work.forget, kept=kept)),
        Job("plan", CronTrigger(hour=5, minute=0, timezone=LOCAL), work.plan),
        Job("release", CronTrigger(hour=6, minute=30, timezone=LOCAL), work.release),
        Job("watch", CronTrigger(minute="*/5", timezone=LOCAL), work.watch, latest_only=True),
    ]


JOBS: Final = jobs_of(work.Kept())

BEGAN: Final = "scheduler_began"
"""The run that marks when this server's schedule began."""

NEAR: Final = timedelta(minutes=15)
CATCH_UP_MAX: Final = timedelta(hours=26)
"""A server that was down longer runs each job's missed times of the last day only."""


def due_times(trigger: Any, after: datetime, until: datetime) -> list[datetime]:
    """Return a trigger's fire times in (after, until]."""
    found: list[datetime] = []
    at: datetime | None = trigger.get_next_fire_time(None, after + timedelta(microseconds=1))
    while at is not None and at <= until:
        found.append(at)
        at = trigger.get_next_fire_time(at, at + timedelta(microseconds=1))
    return found


def run_due(database: Database, now: datetime, jobs: Sequence[Job] = JOBS) -> list[str]:
    """Run every job that fell due up to `now`, in the order of time, each once; returns what ran here.

    Only one replica at a time: the others find the lock taken and leave it to it.
    """
    with store.jobs_lock_if_free(database) as connection:
        return run_held(connection, now, jobs, since=now) if connection is not None else []


def run_held(connection: Connection, now: datetime, jobs: Sequence[Job] = JOBS, *, since: datetime) -> list[str]:
    """Do what `run_due` does, on the connection that holds the lock: each job within the transaction that it is in, or in its own.

    From `since` on every due time is run, and what was missed shortly before. A new server's schedule begins there: it
    has nothing to catch up with.
    """
    with nullcontext() if connection.in_transaction() else connection.begin():
        last = store.last_due(connection, [BEGAN, *(job.name for job in jobs)])
        if BEGAN not in last:
            store.note_run(connection, BEGAN, since)
    due: list[tuple[datetime, int, Job]] = []
    for number, job in enumerate(jobs):
        after = max(last.get(job.name, last.get(BEGAN, since)), since - CATCH_UP_MAX)
        due += [(at, number, job) for at in _times(job, after, now)]
    return [job.name for at, _, job in sorted(due, key=lambda d: d[:2]) if _run(connection, job, at)]


def _times(job: Job, after: datetime, now: datetime) -> list[datetime]:
    if not job.latest_only:
        return due_times(job.trigger, after, now)
    # The newest is near the end: most of a long step need not be looked through.
    near = max(after, now - NEAR)
    return (due_times(job.trigger, near, now) or due_times(job.trigger, after, now))[-1:]


def _part(connection: Connection) -> AbstractContextManager[object]:
    """What stands or falls as a whole."""
    return connection.begin_nested() if connection.in_transaction() else connection.begin()


def _run(connection: Connection, job: Job, due_at: datetime) -> bool:
    """Run one job at one time, in one transaction with the note that it ran; False when it had run before."""
    try:
        with _part(connection):
            if not store.note_run(connection, job.name, due_at):
                return False
            job.function(connection, due_at)
    except Exception as failure:
        if connection.invalidated:
            raise
        # One job that fails must not keep the others from running.
        log.exception("job failed", job=job.name, due_at=due_at.isoformat(), error=repr(failure)[:500])
        with _part(connection):
            store.note_run(connection, job.name, due_at, f"{type(failure).__name__}: {failure}"[:500])
    return True


class Scheduler:
    """Looks every second of the wall clock whether the fleet's clock has made anything due."""

    def __init__(self, database: Database, clock: Clock, jobs: Sequence[Job] = JOBS) -> None:
        self._database, self._clock, self._jobs = database, clock, jobs
        self._outage = Outage("jobs")
        self._scheduler = BackgroundScheduler(timezone="UTC")
        self._scheduler.add_job(
            self._look,
            IntervalTrigger(seconds=1),
            id="run_due",
            coalesce=True,
            max_instances=1,
            misfire_grace_time=60,
        )

    def _look(self) -> None:
        try:
            run_due(self._database, self._clock.now(), self._jobs)
            self._outage.over()
        except DatabaseError as error:
            if not is_disconnect(error):
                raise
            self._outage.note(error)

    def start(self) -> None:
        """Begin to look."""
        self._scheduler.start()

    def stop(self) -> None:
        """Stop, after what runs now."""
        self._scheduler.shutdown(wait=True)
