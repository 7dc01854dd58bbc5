"""What people and planning read does not cost more with every year that is stored: the same pages are touched, however many there are."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
import pytest
from sqlalchemy import event

from fleet_server.clock import LOCAL
from fleet_server.database import Connection, Database
from fleet_server.devices import health_store, outgoing_store
from fleet_server.devices import store as devices
from fleet_server.faults.store import count_open, open_faults
from fleet_server.jobs import store as jobs
from fleet_server.jobs import work
from fleet_server.ledger import reading
from fleet_server.ledger import store as ledger
from fleet_server.planning import store as planning
from fleet_server.web import views
from fleet_server.workorders import store as workorders
from protocol.topics import Channel

MACHINES: Final = 16
BEGAN: Final = datetime(2024, 1, 1, tzinfo=UTC)
FIRST_DAYS: Final = 20
ALL_DAYS: Final = 160

# Each machine: 12 vends a day in two slots, hourly readings, a visit with a count, and books told after it.
HISTORY: Final = """
INSERT INTO facts SELECT m, 1, d * 12 + n, repeat('x', 150)::bytea, 'vend', at, at, at, NULL
    FROM days, vends, LATERAL (SELECT day + n * interval '1 hour' AS at) AS t;
INSERT INTO movements SELECT m, 'fact:' || m || '/1/' || d * 12 + n || '#0', 'slot/' || m || '/' || n % 2 + 1,
        'dispensed/' || m, 'CONDOM-M', 'L1', 1, 'vend_dispensed', 'dispenser:' || m, 'fact:' || m || '/1/' || d * 12 + n,
        at, at, n % 2 + 1, 1, d * 12 + n, 0
    FROM days, vends, LATERAL (SELECT day + n * interval '1 hour' AS at) AS t;
INSERT INTO vitals_history SELECT m, day + h * interval '1 hour', '{"temperature_c": 21.5}'
    FROM days, generate_series(0, 23) AS h;
INSERT INTO work_orders SELECT DISTINCT 'WO-' || d || '-' || n, 'P', 'HUANGDAO', day::date, 'closed', day, day
    FROM days, generate_series(1, 4) AS n;
INSERT INTO stops SELECT 'V-' || m || '-' || d, 'WO-' || d || '-1', 1, m, 'closed', '[]', day FROM days;
INSERT INTO picks SELECT 'V-' || m || '-' || d, s, 'CONDOM-M', 'L1', 5, 5 FROM days, slots_;
INSERT INTO operations SELECT 'O-' || m || '-' || d || '-' || s, m, 'V-' || m || '-' || d, s, 'count',
        '{"counted": 9, "lot": null, "packs": null}', '111111', s, day, day, 'user:li', 'van/T', 'booked', 1, d
    FROM days, slots_;
INSERT INTO movements SELECT m, 'operation:O-' || m || '-' || d || '-' || s || '#0', 'count_difference/' || m,
        'slot/' || m || '/' || s, 'CONDOM-M', 'L1', 1, 'count_surplus', 'user:li', 'operation:O-' || m || '-' || d || '-' || s,
        day, day, s, 1, d, 1 FROM days, slots_;
INSERT INTO outgoing (dispenser_id, channel, key, payload, created_at, answered_at, answer)
    SELECT m, c, d + 1, '{}', day, day, 'applied' FROM days, (VALUES ('books'), ('desired')) AS channels(c) ORDER BY d;
INSERT INTO outgoing (dispenser_id, channel, key, payload, created_at, answered_at, answer)
    SELECT m, 'orders', 'order-' || m || d, '{"kind": "unlock"}', day, day, 'done' FROM days;
INSERT INTO plans SELECT DISTINCT 'P' || to_char(day, 'YYYYMMDD') || '-1', 'HUANGDAO', day::date, 'released', day, day,
    jsonb_build_object('of', repeat('x', 1000)), '{}'::jsonb FROM days;
INSERT INTO job_runs SELECT DISTINCT 'plan', day, day, day, 'RuntimeError: planted' FROM days;
INSERT INTO job_runs SELECT DISTINCT 'watch', day + n * interval '5 minutes', day, day FROM days, generate_series(1, 288) AS n;
INSERT INTO faults (dispenser_id, slot, code, source, detail, opened_at, cleared_at)
    SELECT m, 1, 'SLOT_JAM', 'machine', '', day, day FROM days;
INSERT INTO dead_letters (topic, payload, reason, received_at) SELECT 'x', 'y', 'z', day FROM days;
INSERT INTO door_sessions SELECT m, 1, d * 12, '111111', day, d * 12 + 1, day FROM days;
"""


def grow(url: str, first: int, last: int) -> None:
    """Add days of history, and let PostgreSQL do what it does in the background."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            f"CREATE TEMPORARY VIEW days AS SELECT 'HD-' || lpad(i::text, 3, '0') AS m, d, '{BEGAN}'::timestamptz + d * interval "
            f"'1 day' AS day FROM generate_series({first}, {last - 1}) AS d, generate_series(1, {MACHINES}) AS i;"
            "CREATE TEMPORARY VIEW vends AS SELECT n FROM generate_series(1, 12) AS n;"
            "CREATE TEMPORARY VIEW slots_ AS SELECT s FROM generate_series(1, 2) AS s".encode()
        )
        connection.execute(HISTORY.encode())
        connection.execute("VACUUM ANALYZE")


REPORTS: Final[dict[str, Callable[[Connection, datetime], Any]]] = {
    "overview": views.overview,
    "one machine": lambda c, now: views.detail(c, "HD-001", now),
    "its facts": lambda c, _: devices.facts_page(c, "HD-001"),
    "its sessions": lambda c, _: reading.sessions_of(c, "HD-001"),
    "last facts": lambda c, _: devices.last_fact_at(c),
    "deliveries of a week": lambda c, now: ledger.dispensed_per_slot(c, now - timedelta(days=7), now, str(LOCAL)),
    "newest movements": lambda c, _: ledger.recent_movements(c, None, 100),
    "a visit": lambda c, now: reading.entries_of_visit(c, f"V-HD-001-{(now - BEGAN).days - 1}"),
    "last counts": lambda c, _: planning.last_counts(c),
    "last visits": lambda c, _: planning.last_visits(c),
    "in transit": lambda c, now: planning.in_transit(c, now - timedelta(days=3)),
    "promised": lambda c, _: workorders.promised(c),
    "work orders": lambda c, _: workorders.read_orders(c),
    "plans": lambda c, _: planning.newest(c, 5),
    "plans of a day": lambda c, now: planning.count_of_day(c, f"P{now - timedelta(days=1):%Y%m%d}-"),
    "open faults": lambda c, _: open_faults(c),
    "newest version": lambda c, _: outgoing_store.next_versions(c, ["HD-001"], Channel.BOOKS),
    "newest books": lambda c, _: outgoing_store.latest_payloads(c, ["HD-001"], Channel.BOOKS),
    "what waits": outgoing_store.due,
    "an order": lambda c, _: outgoing_store.find(c, "order-HD-0013"),
    "health: machines": lambda c, _: health_store.reporting(c),
    "health: unreadable": lambda c, _: health_store.quarantined(c),
    "health: letters": lambda c, now: health_store.dead_letters(c, now - timedelta(days=7)),
    "health: waiting": lambda c, _: health_store.waiting(c),
    "health: jobs": lambda c, now: jobs.failed_runs(c, now - timedelta(days=7)),
    "health: faults": lambda c, _: count_open(c),
    "last runs": lambda c, _: jobs.last_due(c, ["watch", "plan"]),
}


def pages_read(database: Database, report: Callable[[Connection, datetime], Any], now: datetime) -> tuple[int, int]:
    """Return how many pages the statements of a report touch, and how many rows they return."""
    said: list[tuple[str, Any]] = []

    def listen(_c: Any, _u: Any, statement: str, parameters: Any, _x: Any, _many: bool) -> None:
        if not statement.startswith("EXPLAIN"):
            said.append((statement, parameters))

    with database.engine.connect() as connection:
        event.listen(connection, "before_cursor_execute", listen)
        # What is small enough to be read whole at first would compare with nothing later.
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        said.clear()
        report(connection, now)
        pages, rows = 0, 0
        for statement, parameters in said:
            explain = f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {statement}"
            plan = connection.exec_driver_sql(explain, parameters).scalar_one()
            tree = (json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]
            pages += int(tree["Shared Hit Blocks"]) + int(tree["Shared Read Blocks"])
            rows += int(tree["Actual Rows"])
        connection.rollback()
    assert said
    return pages, rows


@pytest.fixture
def machines(database: Database, owner_url: str) -> Database:
    """A fleet without a history."""
    with psycopg.connect(owner_url) as connection:
        connection.execute(
            f"""INSERT INTO dispensers SELECT 'HD-' || lpad(i::text, 3, '0'), '', '', '', '', '', 'market', 'indoor', 36, 120, 0,
                24, 'HUANGDAO' FROM generate_series(3, {MACHINES}) AS i;
            INSERT INTO slots SELECT id, s, 'CONDOM-M', 20 FROM dispensers, generate_series(1, 2) AS s
                WHERE id > 'HD-002';
            INSERT INTO slot_books SELECT dispenser_id, slot, '{{"queue": [], "owed": [], "doubtful": [], "last": null}}', 1, 1, 0
                FROM slots;
            INSERT INTO streams SELECT id, 1, id, 1, '', now(), now(), now() FROM dispensers""".encode()
        )
    return database


def test_no_report_reads_more_pages_with_eight_times_the_history(machines: Database, owner_url: str) -> None:
    def measure(days: int) -> dict[str, tuple[int, int]]:
        now = BEGAN + timedelta(days=days)
        return {name: pages_read(machines, report, now) for name, report in REPORTS.items()}

    grow(owner_url, 0, FIRST_DAYS)
    before = measure(FIRST_DAYS)
    grow(owner_url, FIRST_DAYS, ALL_DAYS)
    after = measure(ALL_DAYS)
    # Indexes may have grown by a level, and each row that is returned may stand on a page of its own.
    grown = {
        name: (before[name], after[name])
        for name in REPORTS
        if after[name][0] > 1.6 * before[name][0] + after[name][1] + 12
    }
    assert grown == {}, grown


def test_what_expires_goes_and_the_rest_stays(machines: Database, owner_url: str) -> None:
    grow(owner_url, 0, FIRST_DAYS)
    kept = work.Kept(vitals=timedelta(days=5), dead_letters=timedelta(days=7))
    now = BEGAN + timedelta(days=FIRST_DAYS)
    with machines.begin() as connection:
        before = connection.exec_driver_sql("SELECT count(*) FROM facts UNION SELECT count(*) FROM movements").all()
        work.forget(connection, now, kept)
        found = connection.exec_driver_sql(
            "SELECT (SELECT count(*) FROM vitals_history), (SELECT min(hour) FROM vitals_history),"
            " (SELECT count(*) FROM dead_letters), (SELECT count(*) FROM job_runs)"
        ).one()
        after = connection.exec_driver_sql("SELECT count(*) FROM facts UNION SELECT count(*) FROM movements").all()
    assert tuple(found) == (5 * 24 * MACHINES, now - timedelta(days=5), 7 * MACHINES, FIRST_DAYS * 289)
    assert after == before
