"""A fleet in which everything has gone wrong that the health page knows of."""

from datetime import datetime, timedelta

from fleet_server.clock import ClockState, system_now
from fleet_server.database import Database
from fleet_server.devices import gap_store, outgoing
from fleet_server.devices.machines import Announcement
from fleet_server.devices.store import announce
from fleet_server.faults.store import FaultChange, record
from fleet_server.jobs import store as jobs
from tests.fleet_server.fixtures import NOW, send, send_bytes
from tests.fleet_server.machine import Machine


def stop_clock(database: Database, at: datetime) -> None:
    """Let the server's clock stand."""
    with database.begin() as connection:
        jobs.write_clock(connection, ClockState("played", at, system_now()))


def trouble_of_every_kind(database: Database) -> None:
    """HD-001 reported until just now, with facts quarantined, forked and lost; HD-002 was never heard of."""
    machine = Machine().vend()
    stranger = Machine("HD-999").vend()
    stop_clock(database, NOW)
    send(database, machine)
    machine.lines += [b'{"kind": "song"}', b'{"kind": "dance"}']
    send(database, machine, 2)
    restored = Machine(stream_id=machine.stream_id).vend(slot=2)
    send(database, restored)
    send_bytes(database, "HD-999", stranger.batch(1))
    send_bytes(database, "HD-001", b"no batch at all")
    with database.begin() as connection:
        gap_store.keep_gap(connection, gap_store.StreamGap("HD-001", 2, 5, 8, b"d" * 32, NOW))
        record(connection, [FaultChange("HD-001", "STREAM_GAP", opened=True, at=NOW)])
        connection.exec_driver_sql("UPDATE streams SET last_at = %s", (NOW - timedelta(minutes=9),))
        announce(connection, [Announcement("HD-001", machine.stream_id, 3, online=True, received_at=NOW)])
        outgoing.order(connection, "HD-001", "unlock", lives_s=86_400, now=NOW - timedelta(hours=3))
        for job, at, error in (
            ("plan", NOW - timedelta(hours=5), "RuntimeError: planted"),
            ("watch_counts", NOW - timedelta(days=2), "RuntimeError: planted"),
            ("watch_counts", NOW - timedelta(days=1), None),
        ):
            jobs.note_run(connection, job, at, error)
