"""When jobs run: one table, by the fleet's clock, once each, on one replica. The one door to APScheduler."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import structlog
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from fleet_server.clock import LOCAL, Clock
from fleet_server.database import Connection, Database
from fleet_server.jobs import store, work

log = structlog.get_logger()

Work = Callable[[Connection, datetime], None]


class Job(NamedTuple):
    """When (local time) what runs. With `latest_only`, times that were missed together run once, as the newest."""

    name: str
    trigger: Any
    function: Work
    latest_only: bool = False


JOBS: Final = [
    Job("watch_expiry", CronTrigger(hour=0, minute=10, timezone=LOCAL), work.watch_expiry),
    Job("forget", CronTrigger(hour=3, minute=30, timezone=LOCAL), work.forget),
    Job("plan", CronTrigger(hour=5, minute=0, timezone=LOCAL), work.plan),
    Job("watch", CronTrigger(minute="*/5", timezone=LOCAL), work.watch, latest_only=True),
]

BEGAN: Final = "scheduler_began"
"""The run that marks when this server's schedule began."""

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


def run_due(database: Database, now: datetime, jobs: Sequence[Job] = JOBS, *, wait: bool = False) -> list[str]:
    """Run every job that fell due up to `now`, in the order of time, each once; returns what ran here.

    Only one replica at a time: the others find the lock taken and leave it to it, or `wait` their turn.
    """
    with store.jobs_lock(database, wait=wait) as held:
        if not held:
            return []
        with database.begin() as connection:
            last = store.last_due(connection)
            if BEGAN not in last:
                # A new server has nothing to catch up with: what falls due from now on is run.
                store.begin_run(connection, BEGAN, now, now)
        due: list[tuple[datetime, int, Job]] = []
        for number, job in enumerate(jobs):
            after = max(last.get(job.name, last.get(BEGAN, now)), now - CATCH_UP_MAX)
            times = due_times(job.trigger, after, now)
            due += [(at, number, job) for at in (times[-1:] if job.latest_only else times)]
        return [job.name for at, _, job in sorted(due, key=lambda d: d[:2]) if _run(database, job, at)]


def _run(database: Database, job: Job, due_at: datetime) -> bool:
    """Run one job at one time, in one transaction with the note that it ran."""
    try:
        with database.begin() as connection:
            if not store.begin_run(connection, job.name, due_at, due_at):
                return False
            job.function(connection, due_at)
            store.end_run(connection, job.name, due_at, due_at, None)
    except Exception as failure:
        # One job that fails must not keep the others from running.
        log.exception("job failed", job=job.name, due_at=due_at.isoformat(), error=repr(failure)[:500])
        with database.begin() as connection:
            store.begin_run(connection, job.name, due_at, due_at)
            store.end_run(connection, job.name, due_at, due_at, f"{type(failure).__name__}: {failure}"[:500])
    return True


class Scheduler:
    """Looks every second of the wall clock whether the fleet's clock has made anything due."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._scheduler = BackgroundScheduler(timezone="UTC")
        self._scheduler.add_job(
            lambda: run_due(database, clock.now()),
            IntervalTrigger(seconds=1),
            id="run_due",
            coalesce=True,
            max_instances=1,
            misfire_grace_time=60,
        )

    def start(self) -> None:
        """Begin to look."""
        self._scheduler.start()

    def stop(self) -> None:
        """Stop, after what runs now."""
        self._scheduler.shutdown(wait=True)
