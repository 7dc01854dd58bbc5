"""Moves the fleet's clock while history is played; a production configuration refuses."""

from datetime import datetime, timedelta
from typing import Final

from fleet_server.clock import ClockState, SettableClock, system_now
from fleet_server.database import Database
from fleet_server.errors import ConflictError, ForbiddenError, InputError
from fleet_server.jobs import store
from fleet_server.jobs.schedule import run_due

NEARLY_NOW: Final = timedelta(minutes=10)


def clock_of(database: Database) -> SettableClock:
    """Return the clock whose state is kept in this database."""

    def load() -> ClockState:
        with database.begin() as connection:
            return store.read_clock(connection, system_now())

    return SettableClock(load)


def advance(database: Database, clock: SettableClock, to: datetime, *, production: bool) -> list[str]:
    """Set the played clock to a moment and run the jobs that fall due on the way, in order; returns their names."""
    _guard(production=production)
    if to.tzinfo is None:
        raise InputError("to", to.isoformat(), "a time with its offset from UTC")
    with database.begin() as connection:
        state = store.read_clock(connection, system_now())
        if state.mode == "system" and store.is_untouched(connection):
            # A history begins, in the past: the schedule begins there too.
            store.forget_runs(connection)
        elif to < state.at(system_now()):
            raise ConflictError("to", to.isoformat(), f"{state.at(system_now()).isoformat()} or later")
        store.write_clock(connection, ClockState("played", to, system_now()))
    clock.forget()
    return run_due(database, to, wait=True)


def go_live(database: Database, clock: SettableClock, speed: float, *, production: bool) -> ClockState:
    """Let the clock run on from where it stands; with the wall clock where that is where it stands, more or less."""
    _guard(production=production)
    if not 0 < speed <= 10_000:  # noqa: PLR2004 - a day in nine seconds is as fast as anything can follow
        raise InputError("speed", speed, "more than 0 and at most 10000")
    with database.begin() as connection:
        wall = system_now()
        at = store.read_clock(connection, wall).at(wall)
        with_wall = speed == 1 and abs(at - wall) < NEARLY_NOW
        base = at if speed != 1 else max(at, wall)
        state = (
            ClockState("system", wall, wall) if with_wall and at <= wall else ClockState("scaled", base, wall, speed)
        )
        store.write_clock(connection, state)
    clock.forget()
    return state


def _guard(*, production: bool) -> None:
    if production:
        raise ForbiddenError("production", True, "false: history is played in demos and simulations only")
