"""Moves the fleet's clock while history is played; a production configuration refuses."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from fleet_server.clock import ClockState, SettableClock, system_now
from fleet_server.database import Connection, Database
from fleet_server.errors import ConflictError, ForbiddenError, InputError
from fleet_server.jobs import store
from fleet_server.jobs.schedule import JOBS, Job, run_held

NEARLY_NOW: Final = timedelta(minutes=10)
CENTURY: Final = range(2001, 2100)
"""What a schedule can be reckoned for, whatever its zone."""
STEP_MAX: Final = timedelta(days=400)
"""A longer step would have to run years of jobs in one request."""


def clock_of(database: Database) -> SettableClock:
    """Return the clock whose state is kept in this database."""

    def load() -> ClockState:
        with database.begin() as connection:
            return store.read_clock(connection, system_now())

    return SettableClock(load)


def advance(
    database: Database, clock: SettableClock, to: datetime, *, production: bool, jobs: Sequence[Job] = JOBS
) -> list[str]:
    """Move the played clock to a moment, through every due time on the way, running its jobs; returns their names.

    A step happens as a whole or not at all; a job that fails is noted and stops nothing.
    """
    _guard(production=production)
    if to.tzinfo is None:
        raise InputError("to", to.isoformat(), "a time with its offset from UTC")
    if to.year not in CENTURY:
        raise InputError("to", to.isoformat(), f"a year from {CENTURY[0]} to {CENTURY[-1]}")
    to = to.astimezone(UTC)
    state = ClockState("played", to, system_now())
    with database.begin() as connection:
        # Under the lock, so that neither another step nor a replica's scheduler comes in between.
        store.hold_jobs(connection)
        at = _stand(connection, to, state.wall)
        ran = run_held(connection, to, jobs, since=at)
        store.write_clock(connection, state)
    clock.put(state)
    return ran


def _stand(connection: Connection, to: datetime, wall: datetime) -> datetime:
    """Return where the clock stands, from which it goes to `to`. Raises ConflictError when that is later already."""
    state = store.read_clock(connection, wall)
    at = state.at(wall)
    if state.mode == "system" and store.is_untouched(connection):
        # A history begins, in the past: the schedule begins there too.
        store.forget_runs(connection)
        at = to
    elif to < at:
        raise ConflictError("to", to.isoformat(), f"{at.isoformat()} or later")
    elif to - at > STEP_MAX:
        raise InputError("to", to.isoformat(), f"at most {STEP_MAX.days} days after {at.isoformat()}")
    return at


def go_live(database: Database, clock: SettableClock, speed: float, *, production: bool) -> ClockState:
    """Let the clock run on from where it stands; with the wall clock where that is where it stands, more or less."""
    _guard(production=production)
    if not 0 < speed <= 10_000:  # noqa: PLR2004 - a day in nine seconds is as fast as anything can follow
        raise InputError("speed", speed, "more than 0 and at most 10000")
    with database.begin() as connection:
        store.hold_jobs(connection)
        wall = system_now()
        at = store.read_clock(connection, wall).at(wall)
        with_wall = speed == 1 and abs(at - wall) < NEARLY_NOW
        base = at if speed != 1 else max(at, wall)
        state = (
            ClockState("system", wall, wall) if with_wall and at <= wall else ClockState("scaled", base, wall, speed)
        )
        store.write_clock(connection, state)
    clock.put(state)
    return state


def _guard(*, production: bool) -> None:
    if production:
        raise ForbiddenError("production", True, "false: history is played in demos and simulations only")
