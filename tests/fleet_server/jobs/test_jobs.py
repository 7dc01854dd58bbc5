"""Jobs run once at each due time of the fleet's clock, however many replicas there are."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from apscheduler.triggers.cron import CronTrigger
from sqlalchemy import text

from fleet_server.clock import LOCAL, ClockState, system_now
from fleet_server.database import Connection, Database
from fleet_server.devices.machines import Announcement
from fleet_server.errors import ConflictError, ForbiddenError, InputError
from fleet_server.faults.store import open_faults
from fleet_server.jobs import clockwork, schedule, store, work
from fleet_server.jobs.schedule import Job
from fleet_server.planning import service as planning
from tests.fleet_server.fixtures import NOW, send
from tests.fleet_server.machine import Machine

BEGAN = datetime(2026, 9, 1, tzinfo=UTC)


def runs(database: Database) -> list[tuple[str, datetime]]:
    query = text("SELECT job, due_at FROM job_runs WHERE job <> 'scheduler_began' ORDER BY due_at, job")
    with database.begin() as connection:
        return [(row.job, row.due_at) for row in connection.execute(query)]


def a_job(calls: list[datetime], **cron: Any) -> Job:
    def call(_connection: Connection, due_at: datetime) -> None:
        calls.append(due_at)

    return Job("sample", CronTrigger(timezone=LOCAL, **cron), call)


def begin(database: Database, *jobs: Job) -> None:
    assert schedule.run_due(database, BEGAN, jobs) == []


def test_a_job_runs_once_at_each_due_time(database: Database) -> None:
    calls: list[datetime] = []
    job = a_job(calls, hour=5)
    begin(database, job)
    for minutes in range(0, 3 * 24 * 60, 50):
        schedule.run_due(database, BEGAN + timedelta(minutes=minutes), [job])
    assert [at.astimezone(LOCAL).hour for at in calls] == [5, 5, 5]
    assert len({at.date() for at in calls}) == 3


def test_ten_replicas_that_look_at_once_run_a_job_once(database: Database) -> None:
    calls: list[datetime] = []
    job = a_job(calls, hour="*")
    begin(database, job)
    with ThreadPoolExecutor(10) as pool:
        now = BEGAN + timedelta(hours=1)
        list(pool.map(lambda _: schedule.run_due(database, now, [job]), range(10)))
    assert len(calls) == 1


def test_a_job_that_fails_is_noted_and_keeps_no_other_from_running(database: Database) -> None:
    calls: list[datetime] = []

    def fail(_connection: Connection, _due_at: datetime) -> None:
        raise RuntimeError("planted")

    jobs = [Job("failing", CronTrigger(hour="*", timezone=LOCAL), fail), a_job(calls, hour="*")]
    begin(database, *jobs)
    schedule.run_due(database, BEGAN + timedelta(hours=1), jobs)
    assert len(calls) == 1
    with database.begin() as connection:
        assert (
            connection.execute(text("SELECT error FROM job_runs WHERE job = 'failing'"))
            .scalar_one()
            .endswith("planted")
        )


def test_a_server_that_was_away_for_a_month_catches_up_with_one_day(database: Database) -> None:
    calls: list[datetime] = []
    job = a_job(calls, hour=5)
    begin(database, job)
    back = BEGAN + timedelta(days=30, hours=12)
    schedule.run_due(database, back, [job])
    assert len(calls) == 1
    assert back - calls[0] < timedelta(hours=26)


# ---------------------------------------------------------------- the clock


def played(database: Database, *moves: datetime) -> list[list[str]]:
    clock = clockwork.clock_of(database)
    return [clockwork.advance(database, clock, to, production=False) for to in moves]


def test_history_that_is_played_runs_its_jobs_in_the_order_of_their_times(database: Database) -> None:
    began, ran = played(database, BEGAN, BEGAN + timedelta(days=2))
    assert began == []
    day = [
        "watch_expiry",
        "book_lost_doors",
        "watch_counts",
        "watch_reports",
        "watch_doors",
        "forget",
        "plan",
        "release",
    ]
    assert sorted(ran) == sorted([*day, *day, "watch"])
    assert [name for name, _ in runs(database) if name in day] == [name for name in ran if name in day]


def test_time_does_not_run_backwards(database: Database) -> None:
    played(database, BEGAN, BEGAN + timedelta(days=1))
    with pytest.raises(ConflictError, match="or later"):
        played(database, BEGAN)


@pytest.mark.parametrize("to", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"])
def test_a_time_at_the_end_of_the_calendar_is_refused(database: Database, to: str) -> None:
    with pytest.raises(InputError, match="a year from"):
        played(database, datetime.fromisoformat(to))


def test_a_time_without_its_offset_and_a_step_of_years_are_refused(database: Database) -> None:
    played(database, BEGAN)
    with pytest.raises(InputError, match="offset from UTC"):
        played(database, BEGAN.replace(tzinfo=None) + timedelta(days=1))
    with pytest.raises(InputError, match="400 days"):
        played(database, BEGAN + timedelta(days=4000))


def test_production_plays_no_history(database: Database) -> None:
    clock = clockwork.clock_of(database)
    with pytest.raises(ForbiddenError, match="production"):
        clockwork.advance(database, clock, BEGAN, production=True)
    with pytest.raises(ForbiddenError, match="production"):
        clockwork.go_live(database, clock, 1.0, production=True)
    assert abs(clock.now() - system_now()) < timedelta(seconds=5)


def test_after_the_history_the_clock_runs_on_at_its_speed_and_survives_a_restart(database: Database) -> None:
    played(database, BEGAN)
    clockwork.go_live(database, clockwork.clock_of(database), 1000.0, production=False)
    with database.begin() as connection:
        kept = store.read_clock(connection, system_now())
    assert (kept.mode, kept.speed) == ("scaled", 1000.0)
    wall = kept.wall + timedelta(seconds=10)
    assert ClockState.at(kept, wall) == kept.base + timedelta(seconds=10_000)


# ---------------------------------------------------------------- what the jobs do


def announce(database: Database, *, online: bool, session: int = 1) -> None:
    from fleet_server.devices import store as devices

    said = Announcement("HD-001", "b" * 32, session, online, NOW)
    with database.begin() as connection:
        devices.announce(connection, [said])


def codes(database: Database) -> set[str]:
    with database.begin() as connection:
        return {fault.code for fault in open_faults(connection, ["HD-001"])}


def do(database: Database, job: Any, at: datetime) -> None:
    with database.begin() as connection:
        job(connection, at)


def test_a_machine_that_is_away_for_half_an_hour_has_one_open_fault_until_it_is_back(database: Database) -> None:
    announce(database, online=False)
    do(database, work.watch_presence, NOW + timedelta(minutes=20))
    assert codes(database) == set()
    for hours in (1, 2, 3):
        do(database, work.watch_presence, NOW + timedelta(hours=hours))
    assert codes(database) == {"NET_LOSS"}
    announce(database, online=True, session=2)
    do(database, work.watch_presence, NOW + timedelta(hours=4))
    assert codes(database) == set()


def test_an_expired_lot_in_a_slot_opens_a_fault_that_its_removal_clears(database: Database) -> None:
    from tests.fleet_server.fixtures import enter, operation

    send(database, Machine().door("111111").door("222222"))
    enter(database, operation("refill", "111111", 0, lot="L1", packs=4))
    do(database, work.watch_expiry, datetime(2028, 12, 30, tzinfo=UTC))
    assert "EXPIRED_IN_SLOT" not in codes(database)
    do(database, work.watch_expiry, datetime(2029, 1, 2, tzinfo=UTC))
    assert "EXPIRED_IN_SLOT" in codes(database)
    enter(database, operation("remove", "222222", 0, lot="L1", packs=4, reason="expired"))
    do(database, work.watch_expiry, datetime(2029, 1, 3, tzinfo=UTC))
    assert "EXPIRED_IN_SLOT" not in codes(database)


def test_any_past_plan_is_made_again_from_what_was_then_known(database: Database) -> None:
    send(database, Machine().door("111111").vend())
    with database.begin() as connection:
        plan_id = planning.make_plan(connection, "HUANGDAO", NOW).id
        kept = planning.get_plan(connection, plan_id)["result"]
        connection.execute(text("UPDATE slots SET capacity = 1"))
        assert planning.replan(connection, plan_id) == kept


def test_plans_are_released_by_themselves_only_where_the_district_has_switched_it_on(database: Database) -> None:
    at = datetime(2026, 9, 23, 22, 30, tzinfo=UTC)
    do(database, work.plan, at)
    do(database, work.release, at)
    with database.begin() as connection:
        assert {plan["state"] for plan in planning.list_plans(connection)} == {"proposed"}
        planning.set_auto_release(connection, on=True)
    do(database, work.release, at)
    with database.begin() as connection:
        assert {plan["state"] for plan in planning.list_plans(connection)} == {"released"}
